"""How far emulated times are from real ones."""
