"""Scores of rankings, and how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import MissingDependency

DEPTH = 10
# ir-measures' names. recall@k as it is usual for answers to questions: whether a right passage is
# among the first k (https://arxiv.org/abs/2004.04906 calls it top-k accuracy).
METRICS = {
    "recall@1": "Success@1",
    "recall@5": "Success@5",
    "recall@10": "Success@10",
    "nDCG@10": "nDCG@10",
    "MRR@10": "RR@10",
}
Values = npt.NDArray[np.float64]

_RESAMPLES = 10_000
_AT_ONCE = 500


@dataclass(frozen=True)
class Interval:
    """A mean over questions, and the interval that holds the true one."""

    mean: float
    low: float
    high: float


def scored(right: Sequence[set[str]], ranked: Sequence[Sequence[str]]) -> dict[str, Values]:
    """Score rankings with ir-measures.

    Args:
        right: For each question the names that are right.
        ranked: For each question the names found, best first.

    Returns:
        For each metric float64, shape (questions,), from 0 to 1.

    Raises:
        MissingDependency: If ir-measures is not installed.
    """
    measures = required("ir_measures")
    # By place and not by similarity: equals keep their order.
    run = {
        str(row): {name: float(-place) for place, name in enumerate(names)}
        for row, names in enumerate(ranked)
    }
    wanted = {str(row): dict.fromkeys(names, 1) for row, names in enumerate(right)}
    parsed = {measures.parse_measure(theirs): name for name, theirs in METRICS.items()}
    found = {name: np.zeros(len(right)) for name in METRICS}
    for one in measures.iter_calc(list(parsed), wanted, run):
        found[parsed[one.measure]][int(one.query_id)] = one.value
    return found


def intervals(
    values: Values, extremes: tuple[float, float], confidence: float = 0.95
) -> list[Interval]:
    """Return means and their bootstrap intervals: percentiles over resampled questions.

    Both extremes are added once before resampling (https://doi.org/10.2307/2685779 does so for
    proportions): questions that were all answered, or a difference that none shows, would have an
    interval of no width, however few they are.

    Args:
        values: float64, shape (n, questions). Differences of two settings make it a paired
            bootstrap.
        extremes: The least and the largest possible value.
        confidence: Share of such intervals that hold the true mean.
    """
    padded = np.hstack([values, np.tile(extremes, (len(values), 1))])
    count = padded.shape[1]
    draw = np.random.default_rng(0)
    means = np.empty((_RESAMPLES, len(values)))
    for start in range(0, _RESAMPLES, _AT_ONCE):
        drawn = draw.integers(count, size=(_AT_ONCE, count))
        times = np.array([np.bincount(each, minlength=count) for each in drawn])
        means[start : start + _AT_ONCE] = times @ padded.T / count
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Interval(*map(float, each)) for each in zip(values.mean(1), low, high, strict=True)]


def required(module: str) -> Any:
    """Import a package of the extra ``evaluate``.

    Raises:
        MissingDependency: If it is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"evaluation needs {module}: pip install 'gemma-embed[evaluate]'"
        ) from error
