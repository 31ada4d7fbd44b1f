"""Speed, latency and memory, for `vasa-hf bench`: `runs.py` is shared, the other files are one measurement each."""
