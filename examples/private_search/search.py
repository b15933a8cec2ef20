"""Hybrid search: exact words and meaning, fused by reciprocal rank, filtered inside both."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemma_embed import Task
from gemma_embed.matryoshka import TwoStepSearch
from gemma_embed.vectors import Vectors, cut
from private_search.abstention import NEEDED, QUESTION_WORDS, Calibration, calibrated
from private_search.catalogue import Filter, Found
from private_search.library import Library
from private_search.text import folded

Mode = Literal["hybrid", "words", "meaning"]

# Cormack, Clarke and Buettcher (2009) found 60 for the fusion, and nothing depends on it much.
_RANK, _CANDIDATES = 60, 50
# Words of a question in more than this share of the passages are not searched for.
_COMMON = 0.2
# A passage counts by its words if it has this share of the question's, weighted by how rare they
# are. Otherwise whatever has a word or two of a long question would push what answers it aside.
_SHARE = 0.5
# What a sentence gains, in cosine, by having all rare words of the question.
_WORDS = 0.3
# Of the first hits, so many sentences at most are compared by meaning: each costs what a question
# costs, and all sentences of all hits would be nine tenths of the time.
_MEANT, _READ = 2, 8
# Shared words, as a share of all words, from which two passages are the same one twice.
_ALIKE = 0.7
_HEADING = re.compile(r"\s*#{1,6}[ \t][^\n]*$")
# Ends of sentences ("1." and "19. Mai" are none), empty lines, and items of lists; mail programs
# wrap lines anywhere.
_SENTENCE = re.compile(
    r"(?<![\s(]\d\.)(?<![\s(]\d\d\.)(?<=[.!?…])\s+|(?<=[。！？])|\n\s*\n"
    r"|\n(?=\s*(?:[-*#|•]|\d+[.)]\s))"
)


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    Attributes:
        found: The passage and its document.
        similarity: Cosine to the question; None if the meaning did not find it.
        sentences: The words of the passage that answer best, one or two sentences.
        also: Passages that say the same, with other places.
    """

    found: Found
    similarity: float | None
    sentences: tuple[str, ...]
    also: tuple[Found, ...] = ()

    @property
    def where(self) -> str:
        """The place to look at: address, and line, page or message."""
        return ", ".join(filter(None, (self.found.address, self.found.place)))

    @property
    def metadata(self) -> dict[str, str | float | None]:
        """What frameworks keep of it besides the text."""
        found = self.found
        return {"title": found.title, "source": self.where, "kind": found.kind,
                "date": found.date, "sender": found.sender}  # fmt: skip


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


@dataclass(frozen=True)
class Ranking:
    """Passages, best first; cosines of those found by meaning; the greatest share of words."""

    passages: list[Found]
    similarity: dict[int, float]
    share: float

    @property
    def best(self) -> float:
        """The highest cosine."""
        return max(self.similarity.values(), default=0.0)


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
        # Questions go past the store; sentences into it, since the same ones are found again.
        self._full = library.embedder.replaced(dimensions=None, store=None)
        self._stored = library.embedder.replaced(dimensions=None)
        self._two_step: TwoStepSearch | None = None
        if library.embedder.dimensions < self._full.dimensions:
            self._two_step = TwoStepSearch(library.embedder, _CANDIDATES, 2 * _CANDIDATES)
        self._calibration: Calibration | None = None
        self._counted = 0

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
        ranking = self.ranked(question, query, filters, mode)
        groups = _grouped(ranking.passages, limit)
        sentences = self._sentences(question, query, [first for first, *_ in groups])
        hits = tuple(
            Hit(first, ranking.similarity.get(first.number), best, tuple(others))
            for (first, *others), best in zip(groups, sentences, strict=True)
        )
        if not hits:
            return Results((), answerable=False, confidence=0.0)
        count = self.library.catalogue.count()
        if self._calibration is None or self._counted != count:
            self._calibration, self._counted = calibrated(self), count
        confidence = self._calibration.confidence(query, ranking.best, ranking.share)
        return Results(hits, confidence >= NEEDED, confidence)

    def ranked(
        self, question: str, query: Vectors, filters: Filter, mode: Mode = "hybrid"
    ) -> Ranking:
        """Search in one way or both, and fuse by reciprocal rank.

        Args:
            question: For the words.
            query: For the meaning, of full width.
            filters: What is searched.
            mode: How.
        """
        meaning = [] if mode == "words" else self._by_meaning(query, filters)
        weights = self.weights(question)
        words = [] if mode == "meaning" else self._by_words(weights, filters)
        numbers = [number for number, _ in meaning]
        found = self.library.catalogue.by_number(list({*numbers, *words}))
        total = sum(weights.values()) or 1.0
        shares = {
            number: sum(weights.get(word, 0.0) for word in folded(f"{each.title} {each.text}"))
            / total
            for number, each in found.items()
        }
        if mode == "hybrid":
            words = [number for number in words if shares.get(number, 0.0) >= _SHARE]
        scores: defaultdict[int, float] = defaultdict(float)
        for ranks in (numbers, words):
            for rank, number in enumerate(ranks, 1):
                scores[number] += 1 / (_RANK + rank)
        ordered = sorted(scores, key=lambda number: -scores[number])
        return Ranking(
            [found[number] for number in ordered if number in found],
            dict(meaning),
            max(shares.values(), default=0.0),
        )

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

    def _by_words(self, weights: dict[str, float], filters: Filter) -> list[int]:
        common = math.log(1 / _COMMON)
        terms = [word for word, weight in weights.items() if weight > common]
        expression = " OR ".join(f'"{term}"' for term in terms or weights)
        return self.library.catalogue.matching(expression, filters, _CANDIDATES) if weights else []

    def weights(self, question: str) -> dict[str, float]:
        """Return a question's words but those of any question, with how rare they are here (IDF).

        A word that the library does not have is the rarest of all.
        """
        words = [word for word in folded(question) if word not in QUESTION_WORDS]
        total = self.library.catalogue.count() + 1
        frequency = self.library.catalogue.frequency(words)
        return {word: max(math.log(total / (frequency.get(word, 0) + 0.5)), 0.0) for word in words}

    def _sentences(
        self, question: str, query: Vectors, passages: Sequence[Found]
    ) -> list[tuple[str, ...]]:
        """Choose two sentences of each, by meaning and rare words; of later ones by words alone."""
        weights = self.weights(question)
        total = sum(weights.values()) or 1.0
        chosen: list[tuple[str, ...]] = []
        for place, each in enumerate(passages):
            parts = _sentences_of(each.text)
            shares = [sum(weights.get(word, 0.0) for word in folded(part)) for part in parts]
            rows = sorted(range(len(parts)), key=lambda row: -shares[row])
            if place < _MEANT:
                rows = rows[:_READ]
                titles = [each.title] * len(rows) if self._stored.takes_titles else None
                vectors = self._stored.embed_documents([parts[row] for row in rows], titles)
                scores = {row: vector @ query + _WORDS * shares[row] / total
                          for row, vector in zip(rows, vectors, strict=True)}  # fmt: skip
                rows.sort(key=lambda row: -scores[row])
            chosen.append(tuple(parts[row] for row in sorted(rows[:2])))
        return chosen


def _sentences_of(text: str) -> list[str]:
    """Split a text; a heading is no answer unless there is nothing else."""
    parts = [part for part in _SENTENCE.split(f"\n{text}") if part.strip()]
    bodies = [part for part in parts if not _HEADING.match(part)] or parts
    return [" ".join(part.split()) for part in bodies]


def _grouped(passages: Sequence[Found], limit: int) -> list[list[Found]]:
    """Put passages that say the same into one group, with the best one first."""
    groups: list[tuple[set[str], list[Found]]] = []
    for passage in passages:
        words = set(folded(passage.text))
        for known, group in groups:
            if words and len(words & known) >= _ALIKE * len(words | known):
                group.append(passage)
                break
        else:
            if len(groups) < limit:
                groups.append((words, [passage]))
    return [group for _, group in groups]
