"""The validity checks V01 to V24, one function each; `analysis.validity` runs them."""
