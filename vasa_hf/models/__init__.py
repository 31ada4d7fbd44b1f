"""The saved model classes, one per file."""
