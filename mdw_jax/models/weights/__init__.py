"""Pretrained weights: where they come from, and how they become parameters."""
