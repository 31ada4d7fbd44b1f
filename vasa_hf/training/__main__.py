"""`accelerate launch -m vasa_hf.training RECIPE [options]`: see `run.py`."""

from vasa_hf.training.run import main

if __name__ == "__main__":
    main()
