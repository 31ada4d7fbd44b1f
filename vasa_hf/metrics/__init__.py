"""Metrics: pure functions over frames, motion and audio, and the evaluation that makes the tables."""
