"""Pure tensor geometry: rotations, crops, landmarks. No networks, no files."""
