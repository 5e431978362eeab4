"""`mdw certify`."""
