"""What was recorded, priced on other networks and extrapolated to more ranks; every number here is `simulated`."""
