"""Why one system is faster than another: accounts of forward passes, a ladder of measured systems, sentences."""
