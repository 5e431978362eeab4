"""`mdw fairness`."""
