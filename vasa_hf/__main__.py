"""`python -m vasa_hf` is `vasa-hf`."""

import sys

from vasa_hf.cli import main

if __name__ == "__main__":
    sys.exit(main())
