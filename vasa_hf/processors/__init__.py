"""Processors of images and audio, which are saved with a pipeline."""
