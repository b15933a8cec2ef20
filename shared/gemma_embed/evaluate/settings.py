"""What is compared: settings, the vectors of each, and the order that each puts passages in."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_embed.evaluate.scores import required
from gemma_embed.identity import Identity
from gemma_embed.long_texts import Overlong
from gemma_embed.models import Model
from gemma_embed.prompts import TASKS, Prompts
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.vectors import Vectors, cut

WORDS = "words (BM25)"

Order: TypeAlias = npt.NDArray[np.intp]
Search: TypeAlias = "Callable[[Any], Order]"


@dataclass(frozen=True)
class Setting:
    """One way to search.

    Attributes:
        runtime: Its name in the report, or ``WORDS``.
        width: Numbers in a vector of the index; 0 for words.
        candidates: Passages that a narrow index finds for a second step at full width; 0 for one
            step.
        prompts: Whether texts get the model's prompts.
        titles: Whether passages get their titles: in the prompt, or without prompts as the first
            line of the text.
        overlong: The policy for texts of too many tokens.
    """

    runtime: str
    width: int = 0
    candidates: int = 0
    prompts: bool = True
    titles: bool = True
    overlong: Overlong = "error"

    @property
    def bytes(self) -> int:
        """Of a vector in the index, as float32."""
        return 4 * self.width


class WithoutPrompts(Runtime):
    """Another runtime, for texts as they are."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def model(self) -> Model:
        """The runtime's own."""
        return self._runtime.model

    @property
    def identity(self) -> Identity:
        """The runtime's own: in a store, texts differ by their prompts already."""
        return self._runtime.identity

    @property
    def prompts(self) -> Prompts:
        """Empty ones; a title is the first line of the text."""
        return Prompts(dict.fromkeys(TASKS, ""), "", "{title}\n", "")

    @property
    def description(self) -> str:
        """The runtime's own."""
        return self._runtime.description

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Pass the texts on."""
        return self._runtime.embed(texts, truncate=truncate)


def best_first(scores: npt.NDArray[Any]) -> Order:
    """Return the columns of a row of scores, best first; equals keep their order."""
    return np.argsort(-scores, kind="stable")


def vector_search(passages: Vectors, width: int, candidates: int) -> Search:
    """Return an exact search.

    Args:
        passages: float32, shape (passages, full width), rows of norm 1.
        width: Of the index.
        candidates: See ``Setting``.

    Returns:
        A function from a question's full-width vector to rows, best first.
    """
    narrow = cut(passages, width)

    def search(question: Vectors) -> Order:
        rows = best_first(narrow @ cut(question[None], width)[0])
        if candidates:
            rows = rows[:candidates]
            rows = rows[best_first(passages[rows] @ question)]
        return rows

    return search


def word_search(texts: Sequence[str]) -> Search:
    """Return a search by BM25; passages that share no word with a question are not found.

    Raises:
        MissingDependency: If bm25s is not installed.
    """
    index = required("bm25s").BM25()
    # The library fails on texts and questions without words.
    index.index([_words(text) or [""] for text in texts], show_progress=False)

    def search(question: str) -> Order:
        scores = index.get_scores(_words(question) or ["\0"])
        rows = best_first(scores)
        found: Order = rows[scores[rows] > 0]
        return found

    return search


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def titled(texts: Sequence[str], titles: Sequence[str | None]) -> list[str]:
    """Return texts with their titles as the first line."""
    return [f"{a}\n{text}" if a else text for a, text in zip(titles, texts, strict=True)]


def milliseconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Return the median time that a call takes; the first one is not counted."""
    times = []
    for item in [items[0], *items]:
        start = time.perf_counter()
        work(item)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:])
