"""Fitting a 3D avatar to one portrait (VASA-3D): starting point, frames, losses, loop and presets."""
