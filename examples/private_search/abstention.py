"""Whether the best hit says more than this library says to any question.

A fixed cosine does not do: a model's cosines differ by topic, by language and by how a question is
put, and the highest of a hundred thousand is higher than that of a hundred. So the library itself
is asked the questions of ``unrelated.txt``, which hardly anybody's documents answer, and what they
find is the measure. Two things count: how far the best cosine stands out from those of the
library's other passages to the same question, in their standard deviations, and the greatest share
of the question's rare words in one passage.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from private_search.catalogue import ALL
from private_search.text import folded

if TYPE_CHECKING:
    from gemma_embed.vectors import Vectors
    from private_search.library import Library
    from private_search.search import Ranking, Search

# A question must do better than this share of those; some of them a library may answer.
NEEDED = 0.9
# What the share of rare words counts, in standard deviations of the other number.
_WORDS = 3.0
# Passages that stand for all.
_SAMPLE = 512
# A library may grow or shrink by so much before it is asked again.
_DRIFT = 0.05

UNRELATED = tuple((Path(__file__).parent / "unrelated.txt").read_text("utf-8").splitlines())
# What questions are made of in several languages: words of more than one of them.
QUESTION_WORDS = frozenset(
    word
    for word, count in Counter(word for line in UNRELATED for word in folded(line)).items()
    if count > 1
)


@dataclass(frozen=True)
class Calibration:
    """What unrelated questions find in a library.

    Attributes:
        passages: How many the library has.
        background: Vectors of some of them, shape (n, width).
        spread: Standard deviation of how far the best hits stand out.
        scores: Of the questions, in order.
    """

    passages: int
    background: Vectors
    spread: float = 1.0
    scores: tuple[float, ...] = ()

    def score(self, ranking: Ranking, words: float = _WORDS) -> float:
        """Join the two numbers of what a question found into one."""
        others = self.background @ ranking.query
        # One passage stands out from nothing.
        apart = (ranking.best - others.mean()) / max(others.std(), 1e-6) if len(others) > 1 else 0.0
        return float(apart) / self.spread + words * ranking.share

    def confidence(self, ranking: Ranking) -> float:
        """Return the share of unrelated questions with a lower score."""
        return float(np.searchsorted(self.scores, self.score(ranking)) / len(self.scores))


def calibrated(search: Search) -> Calibration:
    """Ask a library the unrelated questions, or take what they found the last time."""
    catalogue, embedder = search.library.catalogue, search.library.embedder
    plain = Calibration(catalogue.count(), _background(search.library))
    name = f"calibration {embedder.fingerprint}"
    asked, spread, scores = json.loads(catalogue.setting(name) or "[Infinity, 1, []]")
    if abs(asked - plain.passages) > _DRIFT * plain.passages:
        queries = search.queries(UNRELATED)
        found = [search.ranked(*each, ALL) for each in zip(UNRELATED, queries, strict=True)]
        spread = float(np.std([plain.score(ranking, words=0.0) for ranking in found])) or 1.0
        scores = sorted(map(replace(plain, spread=spread).score, found))
        with catalogue.db:
            value = json.dumps([plain.passages, spread, scores])
            catalogue.insert("settings", name=name, value=value)
    return replace(plain, spread=spread, scores=tuple(scores))


def _background(library: Library) -> Vectors:
    numbers = [number for (number,) in library.catalogue.all("SELECT number FROM passages")]
    # The same ones each time, so that a question is judged alike.
    chosen = random.Random(0).sample(numbers, min(_SAMPLE, len(numbers)))  # noqa: S311
    passages = library.catalogue.by_number(chosen).values()
    full = library.embedder.replaced(dimensions=None)
    titles = [each.title for each in passages] if full.takes_titles else None
    # The store has them.
    return full.embed_documents([each.text for each in passages], titles)
