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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from private_search.catalogue import Filter
from private_search.text import folded

if TYPE_CHECKING:
    from gemma_embed.vectors import Vectors
    from private_search.library import Library
    from private_search.search import Search

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
        background: Vectors of some of its passages, shape (n, width).
        spread: Standard deviation of how far the best hits stand out.
        scores: Of the questions, in order.
    """

    background: Vectors
    spread: float
    scores: tuple[float, ...]

    def score(self, query: Vectors, best: float, share: float) -> float:
        """Join the two numbers into one.

        Args:
            query: The question's vector.
            best: The highest cosine of a passage.
            share: Of rare words.
        """
        return _apart(self.background, query, best) / self.spread + _WORDS * share

    def confidence(self, query: Vectors, best: float, share: float) -> float:
        """Return the share of unrelated questions with a lower score."""
        score = self.score(query, best, share)
        return float(np.searchsorted(self.scores, score) / len(self.scores))


def calibrated(search: Search) -> Calibration:
    """Ask a library the unrelated questions, or take what they found the last time."""
    library = search.library
    count, name = library.catalogue.count(), f"calibration {library.embedder.fingerprint}"
    background = _background(library)
    known = json.loads(library.catalogue.setting(name) or "null")
    if known is None or abs(known["passages"] - count) > _DRIFT * count:
        found = []
        queries = search.queries(UNRELATED)
        for question, query in zip(UNRELATED, queries, strict=True):
            ranking = search.ranked(question, query, Filter())
            found.append((query, ranking.best, ranking.share))
        apart = [_apart(background, query, best) for query, best, _ in found]
        plain = Calibration(background, float(np.std(apart)) or 1.0, ())
        scores = sorted(plain.score(*each) for each in found)
        known = {"passages": count, "spread": plain.spread, "scores": scores}
        library.catalogue.setting(name, json.dumps(known))
    return Calibration(background, known["spread"], tuple(known["scores"]))


def _background(library: Library) -> Vectors:
    numbers = [number for (number,) in library.catalogue.db.execute("SELECT number FROM passages")]
    # The same ones each time, so that a question is judged alike.
    chosen = random.Random(0).sample(numbers, min(_SAMPLE, len(numbers)))  # noqa: S311
    passages = library.catalogue.by_number(chosen).values()
    full = library.embedder.replaced(dimensions=None)
    titles = [each.title for each in passages] if full.takes_titles else None
    # The store has them.
    return full.embed_documents([each.text for each in passages], titles)


def _apart(background: Vectors, query: Vectors, best: float) -> float:
    if len(background) < 2:
        return 0.0
    others = background @ query
    return float((best - others.mean()) / max(float(others.std()), 1e-6))
