"""``gemma-embed export``."""

from __future__ import annotations

import argparse
import sys
from typing import Any, get_args

from gemma_fast.gguf_file import GgufPrecision


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser("export", help="write a checkpoint in another format")
    formats = parser.add_subparsers(required=True, metavar="FORMAT")
    gguf = formats.add_parser("gguf", help="one file for Ollama, LM Studio and llama.cpp")
    gguf.add_argument("model", metavar="FOLDER", help="a checkpoint; or a hub id on this disk")
    gguf.add_argument("path", metavar="OUT", help="the file, ending in .gguf")
    gguf.add_argument("--precision", choices=get_args(GgufPrecision), default="bf16")
    gguf.set_defaults(run=_gguf)


def _gguf(options: argparse.Namespace) -> int:
    from gemma_embed.export import export_gguf

    done = export_gguf(options.model, options.path, precision=options.precision)
    sys.stdout.write(f"{done}\n")
    return 0
