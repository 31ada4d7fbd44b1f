"""Saved pre- and post-processors of pictures and sound."""
