"""Layer time and memory against the number of ranks."""
