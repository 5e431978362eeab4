"""Devices, processes, signals, random keys."""
