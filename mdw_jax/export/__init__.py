"""Distilled sets as files for other programs: common formats, dataset cards, PyTorch."""
