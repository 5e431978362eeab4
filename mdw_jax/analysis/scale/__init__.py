"""How time and memory of a whole run grow with the number of pairs: `mdw bench --scale`."""
