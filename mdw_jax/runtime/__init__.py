"""Devices, processes, signals, random streams, pytrees and progress."""
