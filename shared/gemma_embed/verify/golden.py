"""Golden values: what the trained model answers, and what it answers with each fault.

One file a model, ``golden/<name>.json``, made by ``benchmarks/verify.py --golden FOLDER``. A vector
is stored as its first numbers, which trained models make a vector of their own; without a fault
also as all of them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gemma_embed.prompts import Prompts
from gemma_embed.vectors import Vectors, cut

_HERE = Path(__file__).parent
NUMBERS = 64

# Which thresholds were chosen on which texts and precisions: docs/verify.md.
# Distances are those of unit vectors, root mean square over probes: sqrt(2 - 2 cosine).
_FAR = 1.2  # beyond it, another model: unrelated vectors are 1.4 apart
_STANDS_OUT = 10.0  # a probe is odd that is so many times as far as the median one
# A cause is not excluded if answers lean to it by this share of the way, or if it is no larger than
# this share of what is left of them.
_UNCLEAR = 0.3
# The largest distance of each precision.
_PRECISIONS = ((0.002, "float32"), (0.02, "bfloat16"), (0.1, "8 bits"), (0.35, "4 bits"))


@dataclass(frozen=True)
class Probe:
    """A text that runtimes are asked for.

    Attributes:
        name: Its name in the golden values.
        kind: ``query``, ``document``, or ``bare`` without a prompt.
        text: Without its prompt.
        title: Of a document.
    """

    name: str
    kind: str
    text: str
    title: str | None = None

    def prompted(self, prompts: Prompts) -> str:
        """Return the text as a runtime gets it."""
        return (
            self.text if self.kind == "bare" else prompts.prompted(self.text, self.kind, self.title)
        )


@cache
def probes() -> tuple[Probe, ...]:
    """Return all probes: short ones, the long one, and that with another end."""
    listed = json.loads((_HERE / "probes.json").read_text(encoding="utf-8"))
    return tuple(Probe(**probe) for probe in listed)


def compared(vector: Vectors) -> Vectors:
    """Return the part of a vector that is compared, float32, shape (NUMBERS,).

    Of length 1; all zeros stay, and are far from every golden value.
    """
    first = np.asarray(vector[:NUMBERS], dtype=np.float64)
    part: Vectors = (first / (np.linalg.norm(first) or 1.0)).astype(np.float32)
    return part


@dataclass(frozen=True)
class Nearest:
    """What answers are nearest to.

    Attributes:
        cause: A name in ``CAUSES``, or ``ok``.
        distance: To its golden values.
        not_excluded: Causes that these answers do not clearly rule out at this precision; the
            nearest one, if the cause is ``several``.
    """

    cause: str
    distance: float
    not_excluded: tuple[str, ...] = ()

    @property
    def precision(self) -> str | None:
        """What number type such a distance comes from; None if it is from none."""
        return next((name for most, name in _PRECISIONS if self.distance <= most), None)


@dataclass(frozen=True)
class Golden:
    """Golden values of a model.

    Attributes:
        inner: The width between its Dense layers.
        answers: For ``ok`` and each fault the compared part of each probe's vector.
        complete: For ``ok`` each probe's vector.
    """

    inner: int
    answers: Mapping[str, Mapping[str, Vectors]]
    complete: Mapping[str, Vectors] = field(default_factory=dict)

    def nearest(self, seen: Mapping[str, Vectors]) -> Nearest:
        """Find the fault whose answers are nearest.

        Args:
            seen: The compared part of each probe's vector.
        """
        right = self.answers["ok"]
        names = [name for name in right if name in seen]
        answers = np.array([seen[name] for name in names])
        golden = {
            fault: np.array([own.get(name, right[name]) for name in names])
            for fault, own in self.answers.items()
        }
        best = min(golden, key=lambda fault: float(np.square(answers - golden[fault]).sum()))
        left = answers - golden[best]
        each = np.linalg.norm(left, axis=1)
        distance = float(np.sqrt(np.square(each).mean()))
        if distance > _FAR:
            return Nearest("another_model", distance)
        size = float(np.sqrt(np.square(golden[best] - golden["ok"]).sum(1).mean()))
        usual = max(float(np.median(each)), _PRECISIONS[0][0])
        more_than_rounding = distance > max(_PRECISIONS[-1][0], size)
        if more_than_rounding or each.max() > _STANDS_OUT * usual:
            return Nearest("several", distance, (_cause(best),))

        def unclear(fault: str) -> bool:
            way = golden[fault] - golden[best]
            squared, there = np.square(way).sum(), way.any(1)
            lean = (left * way).sum() / squared
            return bool(max(lean, 0) > _UNCLEAR or squared < _UNCLEAR**2 * (each[there] ** 2).sum())

        others = (fault for fault in golden if _cause(fault) != _cause(best))
        near = {_cause(best)}
        if distance <= _PRECISIONS[-1][0]:
            near |= {_cause(fault) for fault in others if unclear(fault)}
        # No alarm without evidence.
        cause = "ok" if "ok" in near else _cause(best)
        return Nearest(cause, distance, tuple(sorted(near - {cause})))

    def differs_later(self, unit: Mapping[str, Vectors], distance: float) -> bool:
        """Tell whether numbers are wrong that are not compared with those of faults.

        Args:
            unit: Each probe's vector, of length 1; of the same width.
            distance: Of their compared parts to the right ones.
        """
        seen = np.array(list(unit.values()))
        right = cut(np.array([self.complete[name] for name in unit]), seen.shape[1])
        apart = np.sqrt(np.square(seen - right).sum(1).mean())
        usual = max(distance, _PRECISIONS[0][0])
        return bool(apart > min(_STANDS_OUT * usual, _PRECISIONS[-1][0]))


def golden_of(model: str) -> Golden | None:
    """Return a model's golden values; None if there are none."""
    file = _HERE / "golden" / f"{model}.json"
    if not file.is_file():
        return None
    stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return Golden(
        inner=stored["inner"],
        answers={
            fault: {name: _decoded(text) for name, text in own.items()}
            for fault, own in stored["answers"].items()
        },
        complete={name: _decoded(text) for name, text in stored["complete"].items()},
    )


def _cause(fault: str) -> str:
    return fault.partition("/")[0]


def _decoded(text: str) -> Vectors:
    return np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32)


def encoded(part: Vectors) -> str:
    """Return a vector, or the compared part of one, as the file has it."""
    return base64.b64encode(part.astype("<f2").tobytes()).decode()
