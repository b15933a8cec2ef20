"""``gemma-embed compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemma_embed.commands import runtime as runtimes
from gemma_embed.commands.evaluate import add_output, show, store_of


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "compare",
        help="measure how far two runtimes agree on your texts, and what it does to search",
    )
    parser.add_argument("runtimes", nargs=2, metavar="RUNTIME", help=runtimes.HELP)
    parser.add_argument("--model", help="folder or hub id, for names such as onnx")
    parser.add_argument(
        "--texts", type=Path, required=True, help="a folder, JSONL, or one text per line"
    )
    parser.add_argument("--questions", type=Path, help="JSONL, to compare recall as well")
    parser.add_argument("--overlong", default="error", help="error, truncate or split")
    add_output(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gemma_embed.evaluate import compare, read_passages, read_questions

    first, second = options.runtimes
    opened = runtimes.opened_all(options.runtimes, options.model)
    found = compare(
        opened[first],
        opened[second],
        read_passages(options.texts),
        read_questions(options.questions) if options.questions else (),
        names=(first, second),
        overlong=options.overlong,
        store=store_of(options),
    )
    show(found, options)
    return 0
