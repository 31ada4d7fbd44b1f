"""Speed, latency and memory for `vasa-hf bench`: shared code in `runs.py`, one measurement in each other file."""
