"""Pipelines: one file, one paper."""
