"""Encoders of images and texts, and the dual encoder they make."""
