"""Metrics: pure functions of frames, motion and audio."""
