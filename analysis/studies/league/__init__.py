"""All systems at one point, the fastest first."""
