"""`mdw bench`: how fast the computations of a config are, in ratios to reference implementations."""
