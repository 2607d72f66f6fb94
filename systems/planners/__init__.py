"""Who hosts which expert: pure functions, tested by hand-worked cases."""
