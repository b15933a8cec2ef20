"""Code that the examples of classification, clustering and fine-tuning share."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import RUNTIMES
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Score:
    """A score of a sample, and the 95 % interval of resampling it 2,000 times."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})".replace("+0.", "0.")


def resampled(score: Callable[[NDArray[np.intp]], float], size: int) -> Score:
    """Score the rows of a sample, and resamples of it.

    Args:
        score: From row numbers, which may repeat, to a score.
        size: How many rows there are.
    """
    draws = np.random.default_rng(1).integers(size, size=(2000, size))
    low, high = np.percentile([score(rows) for rows in draws], [2.5, 97.5])
    return Score(float(score(np.arange(size))), float(low), float(high))


def read_lines(path: Path, *needed: str) -> list[dict[str, Any]]:
    """Read a JSONL file, one object per line.

    Args:
        path: The file.
        needed: Keys that every object has, with a text.

    Raises:
        SystemExit: If the file cannot be read, or a line is something else.
    """
    rows = []
    try:
        # Not splitlines(): some characters in a text are line ends to it.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{path} cannot be read as UTF-8 text: {error}")
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                sys.exit(f"{path}, line {number}: no valid JSON ({type(error).__name__})")
            if not isinstance(row, dict) or not all(
                isinstance(row.get(key), str) for key in needed
            ):
                sys.exit(f"{path}, line {number}: not an object with {', '.join(needed)}")
            rows.append(row)
    if not rows:
        sys.exit(f"{path} is empty")
    return rows


def parser(description: str, picture: str) -> argparse.ArgumentParser:
    """Return a parser with the options that these examples share."""
    found = argparse.ArgumentParser(description=description.partition("\n")[0])
    found.add_argument("--runtime", choices=RUNTIMES, default="auto")
    found.add_argument("--model", help="hub id, folder or server tag for --runtime")
    found.add_argument("--picture", type=Path, default=Path(picture), help="where to save it")
    return found


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Return a figure and its axes, an array of this many rows and columns."""
    import warnings

    from matplotlib.figure import Figure

    # Scripts that the font lacks are drawn as boxes.
    warnings.filterwarnings("ignore", "Glyph", UserWarning)
    # Not pyplot: no window, and nothing stays open.
    figure = Figure(size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save(figure: Any, path: Path) -> None:
    """Save a picture, and say where."""
    figure.savefig(path, dpi=90)
    print(f"\nPicture: {path}")
