"""What an evaluation found: a table, JSON, a plot, and what the figures allow to say."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gemma_embed.errors import ConfigurationError
from gemma_embed.evaluate.scores import METRICS, Interval, Values, intervals, required
from gemma_embed.evaluate.settings import Setting
from gemma_embed.files import expanded

ADVISED = "recall@1"
# What a cheaper setting may lose and still be called as good.
TOLERATED = 0.02
# Settings named in a sentence; more are counted.
_NAMED = 8


@dataclass(frozen=True)
class Row:
    """A setting, and how it did.

    Attributes:
        setting: What was measured.
        scores: For each metric float64, shape (questions,), from 0 to 1.
        milliseconds: Median time of a question, embedding and search; None if it was not measured.
    """

    setting: Setting
    scores: Mapping[str, Values]
    milliseconds: float | None = None

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """The mean of each metric, with its 95 % bootstrap interval."""
        found = intervals(np.array(list(self.scores.values())), (0.0, 1.0))
        return dict(zip(self.scores, found, strict=True))


@dataclass(frozen=True)
class Report:
    """What ``evaluate`` found; ``str`` of it is the table and the advice.

    Attributes:
        rows: A row for each setting; the first one is what the others are compared with.
        passages: How many were searched.
        questions: How many were asked.
        drawn: Whether questions were made from the passages.
        has_titles: Whether passages have titles.
    """

    rows: tuple[Row, ...]
    passages: int
    questions: int
    drawn: bool = False
    has_titles: bool = True

    def __str__(self) -> str:
        names = [self.name(row) for row in self.rows]
        longest = max(map(len, names))
        lines = [
            f"{_counted(self.questions, 'question')}, {_counted(self.passages, 'passage')}; points "
            "of 100, with 95 % bootstrap intervals",
            " " * longest + "".join(f"{each:>17}" for each in METRICS) + "   bytes      ms",
        ]
        for name, row in zip(names, self.rows, strict=True):
            cells = [
                f"{100 * each.mean:.1f} ({100 * each.low:.0f}-{100 * each.high:.0f})"
                for each in row.intervals.values()
            ]
            size = f"{row.setting.bytes:,}" if row.setting.width else ""
            took = "" if row.milliseconds is None else f"{row.milliseconds:.1f}"
            cells = [f"{cell:>17}" for cell in cells]
            lines.append(f"{name:<{longest}}{''.join(cells)}{size:>8}{took:>8}")
        return "\n".join([*lines, "", *self.advice()])

    def name(self, row: Row) -> str:
        """Return a row's name: what sets its setting apart."""
        setting = row.setting
        parts = [setting.runtime, str(setting.width or "")]
        if setting.candidates:
            parts.append(f"then {setting.candidates} in full")
        if not setting.prompts:
            parts.append("no prompts")
        if self.has_titles and not setting.titles:
            parts.append("no titles")
        policies = {each.setting.overlong for each in self.rows if each.setting.width}
        if setting.width and len(policies) > 1:
            parts.append(setting.overlong)
        return ", ".join(filter(None, parts))

    def differences(self, metric: str = ADVISED) -> list[Interval]:
        """Return by how much each row is above the first.

        Paired bootstrap over questions; wide enough that all rows' intervals together hold with
        95 % (Bonferroni).
        """
        values = np.array([row.scores[metric] for row in self.rows])
        confidence = 1 - 0.05 / max(1, len(values) - 1)
        return intervals(values - values[0], (-1.0, 1.0), confidence)

    def advice(self) -> list[str]:
        """Say what the questions show about the settings, and what they leave open."""
        lines = [f"Against {self.name(self.rows[0])}, in points of {ADVISED}:"]
        as_good, unknown = [], {}
        for row, found in zip(self.rows[1:], self.differences()[1:], strict=True):
            name, low, high = self.name(row), 100 * found.low, 100 * found.high
            if found.low > 0:
                lines.append(f"- {name} gains {100 * found.mean:.1f} ({low:.1f} to {high:.1f})")
            elif found.high < 0:
                lines.append(f"- {name} loses {-100 * found.mean:.1f} ({-high:.1f} to {-low:.1f})")
            elif found.low > -TOLERATED:
                lines.append(f"- {name} loses nothing, or less than {-low:.1f}")
            else:
                unknown[name] = found.high - found.low
            smaller = 0 < row.setting.width < self.rows[0].setting.width
            if found.low > -TOLERATED and smaller:
                as_good.append(row)
        if unknown:
            reach = 50 * statistics.median(unknown.values())
            named = "; ".join(unknown) if len(unknown) <= _NAMED else f"{len(unknown)} settings"
            lines.append(
                f"Not decided: {named}. {_counted(self.questions, 'question')} can only show "
                f"differences of about {reach:.0f} points or more."
            )
        if as_good:
            best = min(as_good, key=lambda row: (row.setting.width, row.milliseconds or 0))
            lines.append(
                f"The smallest index that loses less than {100 * TOLERATED:.0f} points: "
                f"{self.name(best)}."
            )
        if self.drawn:
            lines.append(
                "The questions were drawn from the passages, which is weaker evidence than "
                "questions that people asked: neither scores nor differences need carry over."
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "passages": self.passages,
            "questions": self.questions,
            "drawn": self.drawn,
            "rows": [
                {
                    "name": self.name(row),
                    **asdict(row.setting),
                    "bytes": row.setting.bytes or None,
                    "milliseconds": row.milliseconds,
                    "scores": {name: asdict(each) for name, each in row.intervals.items()},
                    f"{ADVISED} against the first": asdict(found),
                }
                for row, found in zip(self.rows, self.differences(), strict=True)
            ],
            "advice": self.advice(),
        }

    def plot(self, path: str | Path) -> None:
        """Draw recall@1 against bytes per vector and milliseconds per question.

        Args:
            path: The picture's file; its ending decides the format.

        Raises:
            MissingDependency: If matplotlib is not installed.
            ConfigurationError: If the file cannot be written.
        """
        lines: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.setting.width:
                kind = replace(row.setting, width=0)
                name = self.name(replace(row, setting=kind)) or "vectors"
                lines.setdefault(name, []).append(row)
        with drawn(path, 2, sharey=True) as (size_axes, time_axes):
            for number, (name, rows) in enumerate(lines.items()):
                # Side by side, so that equal results do not hide each other.
                moved = 1 + 0.02 * (number - len(lines) / 2)
                _line(size_axes, name, rows, [moved * row.setting.bytes for row in rows])
                if None not in (times := [row.milliseconds for row in rows]):
                    _line(time_axes, "", rows, times)
            for row in (row for row in self.rows if not row.setting.width):
                mean, name = 100 * row.intervals[ADVISED].mean, self.name(row)
                size_axes.axhline(mean, color="grey", linestyle=":", label=name)
                time_axes.axhline(mean, color="grey", linestyle=":")
            sizes = sorted({row.setting.bytes for row in self.rows if row.setting.width})
            size_axes.set(xscale="log", xlabel="bytes per vector", ylabel=f"{ADVISED}, points")
            size_axes.set_xticks(sizes, [f"{each:,}" for each in sizes])
            size_axes.minorticks_off()
            # From 0: widths of one runtime differ by microseconds, too little to see.
            slowest = max(row.milliseconds or 0 for row in self.rows)
            time_axes.set(xlabel="milliseconds per question, search included")
            time_axes.set_xlim(0, 1.1 * slowest or 1)
            size_axes.figure.legend(loc="outside lower center", ncols=2, fontsize="small")


@contextmanager
def drawn(path: str | Path, panels: int, **options: bool) -> Iterator[Any]:
    """Give the axes of a picture, and write it."""
    figure = required("matplotlib.figure").Figure(figsize=(5.5 * panels, 5.5), layout="constrained")
    yield figure.subplots(1, panels, **options)
    try:
        figure.savefig(expanded(path), dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"the plot {path} cannot be written: {error}") from error


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _line(axes: Any, name: str, rows: Sequence[Row], places: Sequence[Any]) -> None:
    found = [row.intervals[ADVISED] for row in rows]
    means = [100 * each.mean for each in found]
    reach = [
        [100 * max(0, each.mean - each.low) for each in found],
        [100 * max(0, each.high - each.mean) for each in found],
    ]
    axes.errorbar(places, means, reach, marker="o", capsize=3, label=name)
