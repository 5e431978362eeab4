"""`mdw plan`."""
