"""Readers of data sets as people hold them."""
