"""How far simulated times of described devices are from real ones."""
