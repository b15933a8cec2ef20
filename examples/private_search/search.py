"""Hybrid search: exact words and meaning, fused by reciprocal rank, filtered inside both."""

from __future__ import annotations

import math
import re
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemma_embed import Task
from gemma_embed.matryoshka import TwoStepSearch
from gemma_embed.store import EmbeddingStore
from gemma_embed.vectors import Vectors, cut
from private_search.abstention import NEEDED, QUESTION_WORDS, Calibration, calibrated
from private_search.catalogue import ALL, Filter, Found
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
# Bytes of their vectors that are kept: of some 300 questions.
_KEPT = 16_000_000
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

    hits: tuple[Hit, ...] = ()
    answerable: bool = False
    confidence: float = 0.0


@dataclass(frozen=True)
class Ranking:
    """What was found.

    Attributes:
        query: The question's vector, of full width.
        weights: How rare its words are.
        passages: Best first.
        similarity: Cosines of those found by meaning.
        best: The highest one.
        share: The greatest share of the question's words, by weight, that a passage has.
    """

    query: Vectors
    weights: dict[str, float]
    passages: list[Found]
    similarity: dict[int, float]
    best: float
    share: float


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
        # Questions go past every store; sentences into one of their own, since they come again.
        self._full = library.embedder.replaced(dimensions=None, store=None)
        kept = EmbeddingStore(library.folder / "sentences.sqlite", max_bytes=_KEPT)
        self._kept = self._full.replaced(store=kept)
        self._two_step: TwoStepSearch | None = None
        if library.embedder.dimensions < self._full.dimensions:
            self._two_step = TwoStepSearch(library.embedder, _CANDIDATES, 2 * _CANDIDATES)
        self._calibration: Calibration | None = None
        # Frameworks ask from several threads.
        self._turn = threading.Lock()

    def queries(self, questions: Sequence[str]) -> Vectors:
        """Embed questions, at full width."""
        return self._full.embed(questions, self._task)

    def ask(
        self, question: str, filters: Filter = ALL, *, limit: int = 5, mode: Mode = "hybrid"
    ) -> Results:
        """Search, and judge the best hit.

        Args:
            question: In any words and language.
            filters: What is searched.
            limit: Hits at most.
            mode: Both searches, or one.
        """
        with self._turn:
            return self._asked(question, filters, limit, mode)

    def _asked(self, question: str, filters: Filter, limit: int, mode: Mode) -> Results:
        ranking = self.ranked(question, self.queries([question])[0], filters, mode)
        hits = list[Hit]()
        for first, *others in _grouped(ranking.passages, limit):
            sentences = self._sentences(ranking, first, by_meaning=len(hits) < _MEANT)
            similarity = ranking.similarity.get(first.number)
            hits.append(Hit(first, similarity, sentences, tuple(others)))
        if not hits:
            return Results()
        count = self.library.catalogue.count()
        if self._calibration is None or self._calibration.passages != count:
            self._calibration = calibrated(self)
        confidence = self._calibration.confidence(ranking)
        return Results(tuple(hits), confidence >= NEEDED, confidence)

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
        near = {} if mode == "words" else self._by_meaning(query, filters)
        weights = self.weights(question)
        words = [] if mode == "meaning" else self._by_words(weights, filters)
        found = self.library.catalogue.by_number({*near, *words})
        shares = {
            number: _share(weights, f"{each.title} {each.text}") for number, each in found.items()
        }
        if mode == "hybrid":
            words = [number for number in words if shares.get(number, 0.0) >= _SHARE]
        scores: defaultdict[int, float] = defaultdict(float)
        for ranks in (near, words):
            for rank, number in enumerate(ranks, 1):
                scores[number] += 1 / (_RANK + rank)
        ordered = sorted(scores, key=lambda number: -scores[number])
        passages = [found[number] for number in ordered if number in found]
        best, share = (max(each.values(), default=0.0) for each in (near, shares))
        return Ranking(query, weights, passages, near, best, share)

    def _by_meaning(self, query: Vectors, filters: Filter) -> dict[int, float]:
        """Return cosines by passages' numbers, the best first."""
        library, parts = self.library, self.library.catalogue.conditions(filters)
        where: list[Any] = [{column: {operator: value}} for column, operator, value in parts]
        got: Any = library.collection.query(
            query_embeddings=cut(query[None, :], library.embedder.dimensions),
            n_results=2 * _CANDIDATES if self._two_step else _CANDIDATES,
            where={"$and": where} if len(where) > 1 else next(iter(where), None),
            include=["distances"],
        )
        near = {int(row): 1 - far
                for row, far in zip(got["ids"][0], got["distances"][0], strict=True)}  # fmt: skip
        if self._two_step is None:
            return near
        there = list(library.catalogue.by_number(near).values())
        best = self._two_step.best(query, [(each.text, each.title) for each in there])
        return {there[place].number: similarity for place, similarity in best}

    def _by_words(self, weights: dict[str, float], filters: Filter) -> list[int]:
        common = math.log(1 / _COMMON)
        terms = [word for word, weight in weights.items() if weight > common]
        expression = " OR ".join(f'"{term}"' for term in terms or weights)
        return self.library.catalogue.matching(expression, filters, _CANDIDATES) if weights else []

    def weights(self, question: str) -> dict[str, float]:
        """Return a question's words but those of any question, with how rare they are here."""
        words = [word for word in folded(question) if word not in QUESTION_WORDS]
        return self.library.catalogue.rarity(words)

    def _sentences(self, ranking: Ranking, passage: Found, *, by_meaning: bool) -> tuple[str, ...]:
        """Choose two sentences of a passage, by the question's rare words, or by meaning too."""
        shares = {part: _share(ranking.weights, part) for part in _sentences_of(passage.text)}
        best = sorted(shares, key=lambda part: -shares[part])
        if by_meaning:
            best = best[:_READ]
            titles = [passage.title] * len(best) if self._kept.takes_titles else None
            cosines = self._kept.embed_documents(best, titles) @ ranking.query
            scores = {part: cosine + _WORDS * shares[part]
                      for part, cosine in zip(best, cosines, strict=True)}  # fmt: skip
            best.sort(key=lambda part: -scores[part])
        return tuple(part for part in shares if part in best[:2])


def _share(weights: dict[str, float], text: str) -> float:
    """Return how much of a question's words a text has, by weight; from 0 to 1."""
    return sum(weights.get(word, 0.0) for word in folded(text)) / (sum(weights.values()) or 1.0)


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
        same = (group for known, group in groups
                if 0 < _ALIKE * len(words | known) <= len(words & known))  # fmt: skip
        if group := next(same, None):
            group.append(passage)
        elif len(groups) < limit:
            groups.append((words, [passage]))
    return [group for _, group in groups]
