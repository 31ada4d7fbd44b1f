"""Blocks of two or more models."""
