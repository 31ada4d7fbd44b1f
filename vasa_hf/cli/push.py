"""The command `push`: publish a model with its card on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import sys
from typing import Any

_EXAMPLES = """examples:
  vasa-hf push motion/pipeline me/my-talking-face --private
  vasa-hf push me/ me/my-avatar --revision trial
  vasa-hf push vasa-small me/vasa-small

The folder needs a card (README.md with `license` and `library_name` in its metadata) and may hold safetensors, JSON,
text, images, audio and video only. Log in first: `hf auth login`, or HF_TOKEN. Loading: from_pretrained("me/...").
"""


def add_commands(command: Any) -> None:
    """Add this module's commands to the parser."""
    push = command("push", _push, "publish a model or an avatar, with its card, on the Hugging Face Hub", _EXAMPLES)
    push.add_argument("name", help="saved folder, or name of an embedded model")
    push.add_argument("repo", help="USER/NAME on the Hub; created if it does not exist")
    push.add_argument("--private", action="store_true", help="only you and your organisation can see it")
    push.add_argument("--revision", metavar="BRANCH", help="branch, created if it does not exist (main)")


def _push(options: argparse.Namespace) -> int:
    from vasa_hf.publish import publish

    try:
        print(publish(options.name, options.repo, private=options.private, revision=options.revision))
    except ConnectionError as error:
        print(f"vasa-hf: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0
