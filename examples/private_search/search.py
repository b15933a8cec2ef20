"""Hybrid search: exact words and meaning, fused by reciprocal rank, filtered inside both."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gemma_embed import Task
from gemma_embed.matryoshka import TwoStepSearch
from gemma_embed.vectors import Vectors, cut
from private_search.abstention import NEEDED, Calibration, calibrated
from private_search.catalogue import Filter, Found
from private_search.library import Library

Mode = Literal["hybrid", "words", "meaning"]

# Cormack, Clarke and Buettcher (2009) found 60 for the fusion, and nothing depends on it much.
_RANK, _CANDIDATES = 60, 50
# Words of a question in more than this share of the passages say nothing about them.
_COMMON = 0.2
# Shared words, as a share of all words, from which two passages are the same one twice.
_ALIKE = 0.7
_SENTENCE = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])|\n+")  # noqa: RUF001


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        found: The passage and its document.
        score: Of the fusion; it orders hits and means nothing else.
        similarity: Cosine to the question; None if the meaning did not find it.
        sentences: The words of the passage that answer best, one or two sentences.
        also: Passages that say the same, with other places.
    """

    found: Found
    score: float
    similarity: float | None
    sentences: tuple[str, ...]
    also: tuple[Found, ...] = ()

    @property
    def where(self) -> str:
        """The place to look at: address, and line, page or message."""
        return f"{self.found.address}, {self.found.place}" if self.found.place else self.found.address


@dataclass(frozen=True)
class Results:
    """What a question found.

    Attributes:
        hits: Best first.
        answerable: Whether the best hit says more than such a library would say to any question.
        confidence: From 0 to 1: the share of unrelated questions that it does better than.
    """

    hits: tuple[Hit, ...]
    answerable: bool
    confidence: float


class Search:
    """Questions to a library."""

    def __init__(self, library: Library, task: Task | str = "question answering") -> None:
        """Search a library.

        Args:
            library: What is searched.
            task: The prompt of the questions.
        """
        self.library = library
        self._task = task
        # Of full width, and past the store: sentences of passages are of no use to anybody later.
        self._full = library.embedder.replaced(dimensions=None, store=None)
        self._two_step: TwoStepSearch | None = None
        if library.embedder.dimensions < self._full.dimensions:
            self._two_step = TwoStepSearch(library.embedder, _CANDIDATES, 2 * _CANDIDATES)
        self._calibration: Calibration | None = None

    def queries(self, questions: Sequence[str]) -> Vectors:
        """Embed questions, at full width."""
        return self._full.embed(questions, self._task)

    def ask(
        self,
        question: str,
        filters: Filter = Filter(),  # noqa: B008 - frozen
        *,
        limit: int = 5,
        mode: Mode = "hybrid",
    ) -> Results:
        """Search, and judge the best hit.

        Args:
            question: In any words and language.
            filters: What is searched.
            limit: Hits at most.
            mode: Both searches, or one.
        """
        query = self.queries([question])[0]
        ranked, similarity = self.ranked(question, query, filters, mode)
        found = self.library.catalogue.by_number(ranked)
        groups = _grouped([found[number] for number in ranked if number in found], limit)
        hits = tuple(
            Hit(
                first,
                1 / (_RANK + rank),
                similarity.get(first.number),
                self._sentences(question, query, first),
                tuple(others),
            )
            for rank, (first, *others) in enumerate(groups, 1)
        )
        if not hits:
            return Results((), answerable=False, confidence=0.0)
        if self._calibration is None or self._calibration.passages != self.library.catalogue.count():
            self._calibration = calibrated(self)
        confidence = self._calibration.confidence(self.evidence(question, similarity, hits[0].found))
        return Results(hits, confidence >= NEEDED, confidence)

    def ranked(
        self, question: str, query: Vectors, filters: Filter, mode: Mode = "hybrid"
    ) -> tuple[list[int], dict[int, float]]:
        """Return passages' numbers, best first, and the similarities of those found by meaning."""
        meaning = [] if mode == "words" else self._by_meaning(query, filters)
        words = [] if mode == "meaning" else self._by_words(question, filters)
        scores: defaultdict[int, float] = defaultdict(float)
        for numbers in ([number for number, _ in meaning], words):
            for rank, number in enumerate(numbers, 1):
                scores[number] += 1 / (_RANK + rank)
        return sorted(scores, key=lambda number: -scores[number]), dict(meaning)

    def _by_meaning(self, query: Vectors, filters: Filter) -> list[tuple[int, float]]:
        collection, where = self.library.collection, self._where(filters)
        count = collection.count()
        if where is None or not count:
            return []
        narrow = cut(query[None, :], self.library.embedder.dimensions)[0]
        got: Any = collection.query(
            query_embeddings=[narrow.tolist()],
            n_results=min(2 * _CANDIDATES if self._two_step else _CANDIDATES, count),
            where=where or None,
            include=["distances"],
        )
        numbers, distances = [int(row) for row in got["ids"][0]], got["distances"][0]
        if self._two_step is None:
            return [(number, 1 - far) for number, far in zip(numbers, distances, strict=True)]
        found = self.library.catalogue.by_number(numbers)
        there = [found[number] for number in numbers if number in found]
        best = self._two_step.best(query, [(each.text, each.title) for each in there])
        return [(there[place].number, similarity) for place, similarity in best]

    def _where(self, filters: Filter) -> dict[str, Any] | None:
        """Return a filter as Chroma's; None if nothing can pass it."""
        parts: list[dict[str, Any]] = []
        if filters.kind:
            parts.append({"kind": filters.kind})
        if filters.after is not None:
            parts.append({"date": {"$gte": filters.after}})
        if filters.before is not None:
            parts.append({"date": {"$lt": filters.before}})
        for column in ("sender", "folder", "site"):
            if getattr(filters, column):
                chosen = self.library.catalogue.chosen(column, filters)
                if not chosen:
                    return None
                parts.append({column: {"$in": chosen}})
        return {"$and": parts} if len(parts) > 1 else (parts[0] if parts else {})

    def _by_words(self, question: str, filters: Filter) -> list[int]:
        terms = self.terms(question)
        if not terms:
            return []
        expression = " OR ".join(f'"{term}"' for term in terms)
        return self.library.catalogue.matching(expression, filters, _CANDIDATES)

    def terms(self, question: str) -> dict[str, float]:
        """Return a question's words that the library has, and how rare they are (BM25's IDF)."""
        words = folded(question)
        total = max(self.library.catalogue.count(), 1)
        frequency = self.library.catalogue.frequency(words)
        return {
            word: math.log((total + 1) / (frequency[word] + 0.5))
            for word in words
            if 0 < frequency.get(word, 0) <= max(_COMMON * total, 3)
        }

    def evidence(
        self, question: str, similarity: dict[int, float], best: Found
    ) -> tuple[float, float]:
        """Return what speaks for an answer: the highest cosine, and the share of rare words."""
        total = math.log(max(self.library.catalogue.count(), 1) + 1)
        known, there = self.terms(question), set(folded(f"{best.title} {best.text}"))
        words = folded(question)
        # A word that the library lacks counts as the rarest.
        frequency = self.library.catalogue.frequency(words)
        weights = {word: known.get(word, 0.0 if word in frequency else total) for word in words}
        share = sum(weight for word, weight in weights.items() if word in there)
        return max(similarity.values(), default=0.0), share / max(sum(weights.values()), 1e-9)

    def _sentences(self, question: str, query: Vectors, found: Found) -> tuple[str, ...]:
        """Choose one or two sentences: nearest in meaning, with the question's rare words."""
        parts = [part.strip() for part in _SENTENCE.split(found.text) if part.strip()]
        if len(parts) <= 2:
            return tuple(parts)
        titles = [found.title] * len(parts) if self._full.takes_titles else None
        vectors = self._full.embed_documents(parts, titles)
        rare = self.terms(question)
        total = sum(rare.values()) or 1.0
        shared = [sum(rare.get(word, 0.0) for word in set(folded(part))) / total for part in parts]
        scores = vectors @ query + 0.3 * np.array(shared)
        best = sorted(np.argsort(-scores)[:2])
        return tuple(parts[place] for place in best)


def folded(text: str) -> list[str]:
    """Return the words of a text as the index has them: small letters without accents."""
    plain = unicodedata.normalize("NFKD", text.lower())
    words = re.findall(r"\w+", "".join(each for each in plain if not unicodedata.combining(each)))
    return list(dict.fromkeys(words))


def _grouped(passages: Sequence[Found], limit: int) -> list[list[Found]]:
    """Put passages that say the same into one group, with the best one first."""
    groups: list[tuple[set[str], list[Found]]] = []
    for passage in passages:
        words = set(folded(passage.text))
        for known, group in groups:
            if len(words & known) >= _ALIKE * len(words | known):
                group.append(passage)
                break
        else:
            groups.append((words, [passage]))
    return [group for _, group in groups[:limit]]

