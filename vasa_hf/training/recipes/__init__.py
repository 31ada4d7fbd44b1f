"""One module for each training: a dataclass of options, and `run(options)`. `training/run.py` is their entry."""
