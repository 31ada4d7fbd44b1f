"""One file for each stage of training."""
