"""Datasets and the making of them."""
