"""Training: one `train_<what>.py` a stage, all on the loop of `loop.py`."""
