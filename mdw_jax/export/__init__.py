"""Distilled sets as files for others."""
