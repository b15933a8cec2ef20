"""Verify a runtime: ask it, past every check that would stop at the first wrong number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gemma_embed.errors import BadResponse
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.vectors import Vectors
from gemma_embed.verify.causes import CAUSES, Found
from gemma_embed.verify.golden import compared, golden_of, probes

# A server may round another way when other texts are computed beside one; padding that is read
# changes more.
_SAME = 0.99
# Of numbers in bfloat16.
_NORM_TOLERANCE = 1e-2
# The trained model's vectors of a long text and of it with another end have a cosine of 0.984.
_LONG, _OTHER_END = "long", "other_tail"
_EQUAL = 0.9995


@dataclass(frozen=True)
class Verdict(Found):
    """What ``verify`` found.

    Attributes:
        model: The row of the model table that the runtime says it runs.
        causes: Names in ``CAUSES`` of all that is wrong, what decides most first; empty if nothing.
        precision: The number type that the distance to the golden values looks like: ``float32``,
            ``bfloat16``, ``8 bits`` or ``4 bits``; None if it could not be told.
        distance: Of the vectors, cut and of length 1, to the nearest golden ones, root mean square
            over the probes; None if it was not measured.
        not_excluded: Causes whose effect is too small to be told at this precision. If the cause is
            ``several``, the nearest one.
        notes: Names in ``CAUSES`` of what Embedder sets right by itself: ``not_normalised``. Other
            clients of the same server or file have to.
    """

    model: str
    causes: tuple[str, ...]
    precision: str | None = None
    distance: float | None = None
    not_excluded: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model}: {'ok' if self.ok else 'not ok'}"]
        lines += self.lines()
        if self.precision is not None:
            lines.append(f"precision: {self.precision} (distance {self.distance:.4f})")
        if self.not_excluded:
            lines.append(f"not excluded: {', '.join(self.not_excluded)}")
        lines += [f"note: {CAUSES[name].what}; {CAUSES[name].remedy}" for name in self.notes]
        return "\n".join(lines)


def verify(runtime: Runtime) -> Verdict:
    """Compare a runtime's vectors with the trained model's.

    Asks for some 1,000 tokens: each probe by itself, then the short ones in one call. Wrong numbers
    are reported and not raised.

    Args:
        runtime: Any runtime, one of your own included. Its ``embed`` is called directly.

    Raises:
        EmbeddingError: If it does not answer at all: no server, no such model, damaged files. A
            runtime that refuses a model names the cause itself.
    """
    model = runtime.model
    texts = {probe.name: probe.prompted(runtime.prompts) for probe in probes()}
    other_end = texts.pop(_OTHER_END)
    alone: dict[str, Vectors] = {}
    found: list[str] = []
    for name, text in texts.items():
        (answer,) = _asked(runtime, [text])
        if isinstance(answer, TooLong):
            found.append("too_short_context")
        elif answer is None:
            found.append("rows")
        else:
            alone[name] = answer
    if found and not alone:
        return Verdict(model.name, tuple(dict.fromkeys(found)))
    golden = golden_of(model.name)
    norms = np.array([_norm(vector) for vector in alone.values()])
    widths = {len(vector) for vector in alone.values()}
    if not np.isfinite(norms).all() or not norms.all():
        return Verdict(model.name, ("not_finite", *found))
    if not widths <= set(model.dimensions) or len(widths) > 1:
        inner = golden is not None and widths == {golden.inner}
        return Verdict(model.name, ("no_second_dense" if inner else "width", *found))
    uneven = bool((np.abs(norms - 1) > _NORM_TOLERANCE).any())
    if widths != {model.width}:
        found.append("cut_not_normalised" if uneven else "cut")
    elif not any(vector[-1] for vector in alone.values()):
        # Cut, and filled up with zeros; the golden values have the first numbers only.
        found.append("cut")
    notes = ("not_normalised",) if uneven and widths == {model.width} else ()
    unit = {name: vector / np.linalg.norm(vector) for name, vector in alone.items()}
    between = _between_calls(runtime, texts, unit)
    if golden is None:
        found += [*between, "no_golden_values"]
        return Verdict(model.name, tuple(dict.fromkeys(found)), notes=notes)
    nearest = golden.nearest({name: compared(vector) for name, vector in unit.items()})
    cause = nearest.cause
    if cause == "several" and _reads_no_end(runtime, other_end, unit):
        cause = "truncated"
    elif cause == "ok" and not found and golden.differs_later(unit, nearest.distance):
        cause = "later_numbers"
    if cause != "ok":
        found.insert(0, cause)
    return Verdict(
        model.name,
        tuple(dict.fromkeys([*found, *between])),
        nearest.precision,
        nearest.distance,
        nearest.not_excluded,
        notes,
    )


def _asked(runtime: Runtime, texts: Sequence[str]) -> list[Vectors | TooLong | None]:
    """Return what a runtime answers to each text; None where it answers not exactly once."""
    answers: dict[int, list[Vectors | TooLong]] = {}
    try:
        for outcome in runtime.embed(texts):
            for row, answer in _unpacked(outcome):
                answers.setdefault(row, []).append(answer)
    except BadResponse:
        # A server that says so itself, or a client that looks.
        return [np.full(1, np.nan, np.float32) for _ in texts]
    once = all(len(given) == 1 for given in answers.values())
    whole = once and set(answers) <= set(range(len(texts)))
    return [answers[row][0] if whole and row in answers else None for row in range(len(texts))]


def _unpacked(outcome: Batch | TooLong) -> list[tuple[int, Vectors | TooLong]]:
    if isinstance(outcome, TooLong):
        return [(outcome.row, outcome)]
    try:
        pairs = zip(outcome.rows, outcome.vectors, strict=True)  # type: ignore[arg-type]
        return [(row, _numbers(vector)) for row, vector in pairs]
    except (TypeError, ValueError, AttributeError):
        # No batch, or not as many vectors as rows.
        return [(-1, np.empty(0, np.float32))]


def _numbers(vector: Any) -> Vectors:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(vector, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        return np.full(1, np.nan, np.float32)


def _norm(vector: Vectors) -> float:
    with np.errstate(over="ignore"):
        return float(np.linalg.norm(vector))


def _reads_no_end(runtime: Runtime, other_end: str, unit: Mapping[str, Vectors]) -> bool:
    """Whether a long text with another end has the same vector: cut where no golden value is."""
    (answer,) = _asked(runtime, [other_end])
    own = unit.get(_LONG)
    if own is None or not isinstance(answer, np.ndarray) or answer.shape != own.shape:
        return False
    return bool(_cosines(answer[None], own[None])[0, 0] > _EQUAL)


def _between_calls(
    runtime: Runtime, texts: Mapping[str, str], unit: Mapping[str, Vectors]
) -> list[str]:
    """Compare each short probe by itself with the same one in a list, and one asked twice."""
    short = [name for name in unit if name != _LONG]
    own = np.array([unit[name] for name in short])
    found: list[str] = []
    if not short:
        return found
    (again,) = _asked(runtime, [texts[short[0]]])
    if not isinstance(again, np.ndarray) or _cosines(again[None], own[:1])[0, 0] < _SAME:
        found.append("not_repeatable")
    answers = _asked(runtime, [texts[name] for name in short])
    vectors = [answer for answer in answers if isinstance(answer, np.ndarray)]
    if len(vectors) < len(short):
        return [*found, "rows"]
    if any(vector.shape != own[0].shape for vector in vectors):
        return [*found, "batch"]
    likeness = _cosines(np.array(vectors), own)
    wrong = ~(likeness.diagonal() >= _SAME)
    if wrong.any():
        elsewhere = (likeness[wrong] >= _SAME).any(1)
        found.append("order" if elsewhere.all() else "batch")
    return found


def _cosines(vectors: Vectors, unit: Vectors) -> Vectors:
    with np.errstate(all="ignore"):
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)) @ unit.T  # type: ignore[no-any-return]
