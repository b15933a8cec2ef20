"""The command ``gemma-embed``; its subcommands are in ``gemma_embed.commands``, one per file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from gemma_embed.commands import compare, evaluate, export, verify
from gemma_embed.errors import ConfigurationError, EmbeddingError

_COMMANDS = (verify, evaluate, compare, export)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code: 0 if all is well, 1 if not, 2 for a wrong call."""
    parser = argparse.ArgumentParser(prog="gemma-embed")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
    except EmbeddingError as error:
        sys.stderr.write(" ".join(f"{type(error).__name__}: {error}".split()) + "\n")
        return 2 if isinstance(error, ConfigurationError) else 1
    return code
