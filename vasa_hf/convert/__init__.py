"""Conversion of public checkpoints to this project's classes and safetensors."""
