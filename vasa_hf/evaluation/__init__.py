"""Evaluation: protocols that run pipelines, the scores of their videos, and the tables of the papers. See README.md."""
