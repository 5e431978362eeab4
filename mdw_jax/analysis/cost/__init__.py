"""Costs without running: operations of a function, bytes that devices send, and `mdw plan`."""
