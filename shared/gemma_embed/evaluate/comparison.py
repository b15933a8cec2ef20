"""Two runtimes on the same texts: how far vectors are apart, and what it does to search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma_embed.embedder import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.evaluate.evaluation import checked_items, evaluate, labels_of, named_texts
from gemma_embed.evaluate.questions import Question
from gemma_embed.evaluate.report import Report, drawn
from gemma_embed.evaluate.scores import DEPTH, Values
from gemma_embed.evaluate.settings import best_first
from gemma_embed.long_texts import Overlong
from gemma_embed.passages import Passage
from gemma_embed.runtimes.base import Runtime
from gemma_embed.store import EmbeddingStore, open_store
from gemma_embed.vectors import Vectors

# Texts: each has two others then, of which one is the nearest.
_FEWEST = 3


@dataclass(frozen=True)
class Agreement:
    """How far two sets of vectors of the same texts agree.

    Attributes:
        cosines: float64, shape (texts,): of the two vectors of each text.
        shared: float64, shape (texts,): the share of the nearest other texts that is the same.
        nearest: How many: ten, or half of the others if they are fewer than twenty.
        first_kept: The share of texts whose nearest other text is the same.
    """

    cosines: Values
    shared: Values
    nearest: int
    first_kept: float

    def as_dict(self) -> dict[str, float]:
        """Return the figures."""
        low, middle = np.quantile(self.cosines, [0.01, 0.5])
        return {
            "texts": len(self.cosines),
            "cosine, least": float(self.cosines.min()),
            "cosine, 1 in 100": float(low),
            "cosine, median": float(middle),
            "cosine, mean": float(self.cosines.mean()),
            "nearest": self.nearest,
            "nearest shared, mean": float(self.shared.mean()),
            "nearest shared, least": float(self.shared.min()),
            "first neighbour kept": self.first_kept,
        }


def agreement(first: Vectors, second: Vectors) -> Agreement:
    """Compare two sets of vectors.

    Args:
        first: float32, shape (texts, width), rows of norm 1; at least three.
        second: The same, for the same texts.

    Raises:
        ConfigurationError: If the shapes differ, or there are too few texts.
    """
    if first.shape != second.shape or len(first) < _FEWEST:
        raise ConfigurationError(_unlike(first.shape, second.shape))
    nearest = min(DEPTH, (len(first) - 1) // 2)
    sides = [_nearest(vectors, nearest) for vectors in (first, second)]
    pairs = list(zip(*sides, strict=True))
    shared = [len({*one} & {*other}) / nearest for one, other in pairs]
    kept = np.mean([one[0] == other[0] for one, other in pairs])
    cosines = np.einsum("ij,ij->i", first, second, dtype=np.float64)
    return Agreement(cosines, np.array(shared), nearest, float(kept))


@dataclass(frozen=True)
class Comparison:
    """What ``compare`` found; ``str`` of it is a summary.

    Attributes:
        names: Of the two runtimes.
        agreement: Of their vectors.
        passages: Ids of the passages, or their positions, in order.
        report: Of the questions; None without any.
    """

    names: tuple[str, str]
    agreement: Agreement
    passages: tuple[str, ...]
    report: Report | None = None

    def __str__(self) -> str:
        found, worst = self.agreement.as_dict(), self.passages[int(self.agreement.cosines.argmin())]
        lines = [
            f"{self.names[1]} against {self.names[0]}, {found['texts']} texts",
            f"cosine: mean {found['cosine, mean']:.6f}, median {found['cosine, median']:.6f}, 1 in "
            f"100 below {found['cosine, 1 in 100']:.6f}, least {found['cosine, least']:.6f} "
            f"(passage {worst})",
            f"nearest {found['nearest']} texts: on average "
            f"{100 * found['nearest shared, mean']:.1f} % are the same, at least "
            f"{100 * found['nearest shared, least']:.0f} %; the nearest is the same for "
            f"{100 * self.agreement.first_kept:.1f} % of the texts",
        ]
        return "\n".join(lines if self.report is None else [*lines, "", str(self.report)])

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        report = None if self.report is None else self.report.as_dict()
        return {"names": self.names, "agreement": self.agreement.as_dict(), "report": report}

    def plot(self, path: str | Path) -> None:
        """Draw how cosines, and shares of equal neighbours, are distributed.

        Args:
            path: The picture's file; its ending decides the format.

        Raises:
            MissingDependency: If matplotlib is not installed.
            ConfigurationError: If the file cannot be written.
        """
        found = self.agreement
        with drawn(path, 2) as (left, right):
            left.hist(found.cosines, bins=30)
            left.set(xlabel=f"cosine of {self.names[0]} to {self.names[1]}", ylabel="texts")
            counts = np.arange(found.nearest + 2) - 0.5
            right.hist(found.shared * found.nearest, bins=counts)
            right.set(xlabel=f"the same among the {found.nearest} nearest texts")


def compare(
    first: Runtime,
    second: Runtime,
    passages: Iterable[Passage | Mapping[str, Any]],
    questions: Sequence[Question] = (),
    *,
    names: tuple[str, str] = ("first", "second"),
    overlong: Overlong = "error",
    title_key: str = "title",
    store: EmbeddingStore | str | Path | None = None,
) -> Comparison:
    """Compare two runtimes on the same texts, at full width.

    Args:
        first: The reference.
        second: What is compared with it.
        passages: At least three, as for ``evaluate``; embedded as documents, with their titles.
        questions: As for ``evaluate``; they show what a difference does to recall.
        names: Of the two runtimes, in what is shown.
        overlong: The policy for texts of too many tokens.
        title_key: The metadata key of titles.
        store: Where vectors are looked up and stored.

    Raises:
        InvalidInput: If a passage or question cannot be used.
        ConfigurationError: If the two have not the same width, or have the same name.
        EmbeddingError: As ``Embedder.embed``.
    """
    if names[0] == names[1]:
        raise ConfigurationError(f"both runtimes are called {names[0]!r}; give them two names")
    items, titles = checked_items(passages, title_key)
    labels = labels_of(items)
    widths = [runtime.model.width for runtime in (first, second)]
    if widths[0] != widths[1] or len(items) < _FEWEST:
        raise ConfigurationError(_unlike((len(items), widths[0]), (len(items), widths[1])))
    file = open_store(store)
    vectors = []
    for runtime in (first, second):
        embedder = Embedder(runtime, overlong=overlong, store=file)
        given = titles if embedder.takes_titles else None
        with named_texts(labels):
            vectors.append(embedder.embed_documents([item.text for item in items], given))
    report = None
    if questions:
        report = evaluate(
            items,
            questions,
            dict(zip(names, (first, second), strict=True)),
            widths=[first.model.width],
            overlong=[overlong],
            words=False,
            title_key=title_key,
            store=file,
            timed=0,
        )
    ids = tuple(item.id or str(row) for row, item in enumerate(items))
    return Comparison(names, agreement(*vectors), ids, report)


def _unlike(first: tuple[int, ...], second: tuple[int, ...]) -> str:
    return (
        f"vectors of shape {first} and {second}: two runtimes are compared on at least "
        f"{_FEWEST} texts, and only at the same width"
    )


def _nearest(vectors: Vectors, count: int) -> list[list[int]]:
    """Return the nearest other texts of each, best first."""
    found = []
    for row, vector in enumerate(vectors):
        similarities = vectors @ vector
        similarities[row] = -np.inf
        found.append([int(each) for each in best_first(similarities)[:count]])
    return found
