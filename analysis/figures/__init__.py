"""Figures by kind of panel, rebuilt offline from raw rows; every one is written as PNG and SVG."""
