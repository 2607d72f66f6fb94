"""One folder a study; `analysis.study` says what one is."""
