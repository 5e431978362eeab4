"""`mdw bench`."""
