"""`python -m vasa_hf.cli` is the command `vasa-hf`."""

import sys

from vasa_hf.cli import main

sys.exit(main())
