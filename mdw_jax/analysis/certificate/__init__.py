"""`mdw certify`: the noise certificate of a run's experts beside measurements."""
