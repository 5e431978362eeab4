"""Image towers, heads and the dual encoder."""
