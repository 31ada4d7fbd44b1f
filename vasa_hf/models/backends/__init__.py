"""Fast CPU paths of single models: the same results up to rounding."""
