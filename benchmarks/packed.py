"""Exact search over vectors in 32, 8 and 1 bits a number, in memory, in one step and in two.

Real vectors, and as many as are wanted with the same mean and covariance. Those are the harder
case: near neighbours of a question are not nearer than chance has it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gemma_embed.compact import Codes, CompactVectors, Form, packed
from gemma_embed.vectors import Vectors, cut

LIMIT = 10
CANDIDATES = 100
WIDTHS = (768, 256, 128)
_ROWS = 50_000

Search = Callable[[Vectors, int], Any]


def scaled(real: Vectors, count: int, seed: int) -> Vectors:
    """Return normal vectors of the mean and covariance of real ones, at unit length."""
    draw = np.random.default_rng(seed)
    mean = real.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(real.T))
    mix = (directions * np.sqrt(np.maximum(variances, 0))).T.astype(np.float32)
    vectors = np.empty((count, real.shape[1]), np.float32)
    for start in range(0, count, _ROWS):
        part = vectors[start : start + _ROWS]
        part[:] = draw.standard_normal(part.shape, np.float32) @ mix + mean
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def exact(documents: Vectors, queries: Vectors, count: int = LIMIT) -> np.ndarray:
    """Rows of the most similar documents for each query."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(documents), _ROWS):
        found = queries @ documents[start : start + _ROWS].T
        some = np.argpartition(-found, min(count, found.shape[1] - 1), axis=1)[:, :count]
        best = np.hstack([best, np.take_along_axis(found, some, axis=1)])
        rows = np.hstack([rows, some + start])
        kept = np.argsort(-best, axis=1)[:, :count]
        best = np.take_along_axis(best, kept, axis=1)
        rows = np.take_along_axis(rows, kept, axis=1)
    return rows


def measure(documents: Vectors, queries: Vectors) -> dict[str, Any]:
    """Print the table, and return its numbers.

    Args:
        documents: At full width, unit length.
        queries: The same.
    """
    wanted = exact(documents, queries)
    found: dict[str, Any] = {}
    print("| vectors | bytes | recall@10 | after 768 | this package | after 768 | usearch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for width in WIDTHS:
        asked = cut(queries, width)
        for name, (size, search, other) in searches(cut(documents, width)).items():
            rows, first = timed(search, [(query, CANDIDATES) for query in asked])
            pairs = [
                (documents, list(row), query) for row, query in zip(rows, queries, strict=True)
            ]
            best, second = timed(ordered, pairs)
            peer = None if other is None else timed(other, [(q, CANDIDATES) for q in asked[:20]])[1]
            one = recall([list(row[:LIMIT]) for row in rows], wanted)
            two = recall(best, wanted)
            label = f"{width} x {name}"
            found[label] = {
                "bytes": size,
                "recall": one,
                "recall_two_steps": two,
                "ms": first,
                "ms_two_steps": first + second,
                "ms_usearch": peer,
            }
            beside = "" if peer is None else f"{peer:.1f} ms"
            print(
                f"| {label} | {size} | {one:.3f} | {two:.3f} | {first:.1f} ms "
                f"| {first + second:.1f} ms | {beside} |",
                flush=True,
            )
    return found


def searches(vectors: Vectors) -> dict[str, tuple[int, Search, Search | None]]:
    """Bytes a vector, this package's search, and usearch's exact one, for each form."""
    width = vectors.shape[1]

    def floats(query: Vectors, count: int) -> Any:
        similarities = vectors @ query
        some = np.argpartition(-similarities, count)[:count]
        return some[np.argsort(-similarities[some])]

    made: dict[str, tuple[int, Search, Search | None]] = {
        "float32": (4 * width, floats, usearch(vectors, "float32"))
    }
    forms: tuple[Form, ...] = ("int8", "binary")
    for form in forms:
        codes = np.concatenate(
            [packed(vectors[at : at + _ROWS], form) for at in range(0, len(vectors), _ROWS)]
        )
        # With the norm that CompactVectors keeps for each.
        size = codes.shape[1] + (4 if form == "int8" else 0)
        ours = CompactVectors(codes, form, width).nearest
        made[form] = (size, ours, usearch(codes, form))
    return made


def usearch(codes: Codes | Vectors, form: str) -> Search | None:
    """Exact search of the library usearch; None where it is not installed."""
    try:
        from usearch.index import MetricKind, search
    except ImportError:
        return None
    metric = MetricKind.Hamming if form == "binary" else MetricKind.Cos

    def found(query: Vectors, count: int) -> Any:
        asked = query[None, :]
        code = asked if form == "float32" else packed(asked, "int8" if form == "int8" else "binary")
        return search(codes, code, count, metric, exact=True, threads=2).keys

    return found


def ordered(documents: Vectors, rows: list[int], query: Vectors) -> list[int]:
    """The ten best of the rows by full-width vectors."""
    similarities = documents[rows] @ query
    return [rows[place] for place in np.argsort(-similarities)[:LIMIT]]


def recall(found: list[list[int]], wanted: np.ndarray) -> float:
    """Share of the exact ten that were found, mean over queries."""
    pairs = zip(found, wanted.tolist(), strict=True)
    return statistics.mean(len(set(a) & set(b)) / LIMIT for a, b in pairs)


def timed(work: Callable[..., Any], calls: list[tuple[Any, ...]]) -> tuple[list[Any], float]:
    """Results of the calls, and the median milliseconds of one, the first left out."""
    results, seconds = [], []
    for call in calls:
        began = time.perf_counter()
        results.append(work(*call))
        seconds.append(time.perf_counter() - began)
    return results, statistics.median(seconds[1:]) * 1000
