"""``gemma-embed evaluate``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from gemma_embed.commands import runtime as runtimes
from gemma_embed.errors import ConfigurationError
from gemma_embed.files import cache_folder


def add(commands: Any) -> None:
    """Add the subcommand to the parser's."""
    parser = commands.add_parser(
        "evaluate", help="measure which runtimes, widths, prompts and titles search your texts best"
    )
    parser.add_argument("runtimes", nargs="+", metavar="RUNTIME", help=runtimes.HELP)
    parser.add_argument("--model", help="folder or hub id, for names such as onnx")
    parser.add_argument("--passages", type=Path, required=True, help="a folder, or a JSONL file")
    parser.add_argument("--questions", type=Path, help="JSONL; without it questions are drawn")
    parser.add_argument("--widths", type=int, nargs="+", help="of the index (all of the model's)")
    parser.add_argument(
        "--two-step", type=int, nargs="+", default=(), help="widths of a first step"
    )
    parser.add_argument("--candidates", type=int, default=100, help="of the first step (100)")
    for name in ("prompts", "titles"):
        choices = ("on", "off")
        parser.add_argument(f"--{name}", nargs="+", choices=choices, default=("on",))
    parser.add_argument("--overlong", nargs="+", default=("error",), help="error, truncate, split")
    parser.add_argument("--task", default="query", help="of the questions (query)")
    parser.add_argument("--timed", type=int, default=16, help="questions to time (16), or 0")
    add_output(parser)
    parser.set_defaults(run=_run)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add what this subcommand and ``compare`` share."""
    parser.add_argument("--store", type=Path, help="file of vectors (in the user's cache folder)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture")
    parser.add_argument("--json", action="store_true", help="print JSON")


def store_of(options: argparse.Namespace) -> Path:
    """Return the file of the store.

    Raises:
        ConfigurationError: If this user has no cache folder.
    """
    folder = cache_folder()
    if options.store is None and folder is None:
        raise ConfigurationError("there is no home folder for vectors; name a file with --store")
    chosen: Path = options.store or folder / "evaluate.sqlite"  # type: ignore[operator]
    return chosen


def show(found: Any, options: argparse.Namespace) -> None:
    """Print a result, and draw it."""
    sys.stdout.write((json.dumps(found.as_dict(), indent=1) if options.json else str(found)) + "\n")
    if options.plot is not None:
        found.plot(options.plot)


def _run(options: argparse.Namespace) -> int:
    from gemma_embed.evaluate import draw_questions, evaluate, read_passages, read_questions

    opened = runtimes.opened_all(options.runtimes, options.model)
    passages = read_passages(options.passages)
    if options.questions is None:
        passages, questions = draw_questions(passages)
    else:
        questions = read_questions(options.questions)
    found = evaluate(
        passages,
        questions,
        opened,
        widths=options.widths,
        prompts=[each == "on" for each in options.prompts],
        titles=[each == "on" for each in options.titles],
        overlong=options.overlong,
        two_step=options.two_step,
        candidates=options.candidates,
        task=options.task,
        store=store_of(options),
        timed=options.timed,
        progress=_progress if sys.stderr.isatty() else False,
    )
    show(found, options)
    return 0


def _progress(done: int, total: int) -> None:
    # Single ones are those that are timed.
    if total > 1:
        sys.stderr.write(f"{done} of {total} texts embedded" + "\r\n"[done == total])
