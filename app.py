"""Entry of a Hugging Face Space: build the page and launch it. On your own computer: `vasa-hf app`."""

import sys

from vasa_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
