"""Data sets that are drawn on the spot."""
