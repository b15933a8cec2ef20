"""Search in two steps: a small index finds candidates, full-width vectors put them in order.

Matryoshka Representation Learning (https://arxiv.org/abs/2205.13147, section 4.3) calls it adaptive
retrieval. An index of 128 numbers a vector is a sixth of one of 768, and what the cut costs in
precision comes back, because only the order of the best few has to be right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch, ConfigurationError
from gemma_embed.passages import embedded_parts, title_of
from gemma_embed.vectors import Vectors, cut


class Candidates(Protocol):
    """What may find the candidates in place of a vector store, as ``CompactIndex`` does."""

    @property
    def fingerprint(self) -> str:
        """The name of its vector space."""

    def nearest(self, query: Vectors, count: int) -> list[str]:
        """Return the ids of the rows that are most similar to a query."""

    def confirm(self, rows: Sequence[str], parts: Sequence[tuple[str, str | None]]) -> None:
        """Refuse rows that have other words than those that were embedded."""


def parts_of(
    metadata: Mapping[str, Any],
    text: str,
    title_key: str | None,
    collection_key: str | None = None,
) -> tuple[str, str | None] | None:
    """Return the text and the title that a search result was embedded with.

    Args:
        metadata: Of the result.
        text: Its text.
        title_key: The metadata key of titles as the caller states it, for rows that do not say it
            themselves.
        collection_key: The same as the collection states it (``title_key_of``).

    Returns:
        None if neither the row nor the caller says it: it was embedded as the framework does.
    """
    parts = embedded_parts(metadata, text, title_key or collection_key)
    if parts is None and title_key is not None:
        return text, title_of(metadata, title_key)
    return parts


@dataclass(frozen=True)
class TwoStepSearch:
    """What a retriever needs of the core around a search of its own small index.

    Attributes:
        embedder: The index's own, with the store of its full-width vectors. It is narrow, unless
            something else finds the candidates.
        limit: Passages in the end.
        candidates: Passages that the first step is asked for.
        compact: What finds the candidates, where it is not the vector store.
    """

    embedder: Embedder
    limit: int
    candidates: int
    compact: Candidates | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ConfigurationError: If the embedder has no store or is not narrow, or the numbers
                cannot work.
        """
        width = self.embedder.runtime.model.width
        if self.embedder.store is None:
            raise ConfigurationError(
                "a search in two steps takes full-width vectors from an embedding store: pass "
                "store='path/of/a/file', the one that the index was filled with (for a "
                "ChromaIndex '<folder>.embeddings.sqlite')"
            )
        if self.embedder.dimensions == width and self.compact is None:
            raise ConfigurationError(
                f"the index is {width} wide, the model's full width, so a second step could "
                "change nothing: search it directly, rebuild it with dimensions=128 or 256, or "
                "pass a CompactIndex of it as compact="
            )
        if not 1 <= self.limit <= self.candidates:
            raise ConfigurationError(
                f"{self.limit} passages of {self.candidates} candidates: ask for at least one, "
                "and for at least as many candidates as passages"
            )

    def query(self, text: str) -> tuple[Vectors, list[float]]:
        """Embed a query once, for both steps.

        Returns:
            The full-width vector, and its beginning at unit length, for the narrow index.

        Raises:
            EmbeddingError: As ``Embedder.embed_query``.
        """
        full = self._full.embed_query(text)
        return full, cut(full[None, :], self.embedder.dimensions)[0].tolist()

    def nearest(self, narrow: Sequence[float]) -> list[str] | None:
        """Return the ids of the candidates; None leaves them to the vector store.

        Args:
            narrow: The query's vector for the first step, from ``query``.

        Raises:
            CollectionMismatch: If ``compact`` is of another space, or out of date.
        """
        if self.compact is None:
            return None
        if self.compact.fingerprint != self.embedder.fingerprint:
            raise CollectionMismatch(
                "the compact index holds other vectors than the vector store's embeddings make: "
                "make both with one embedder"
            )
        return self.compact.nearest(np.asarray(narrow, dtype=np.float32), self.candidates)

    def best(
        self,
        query: Vectors,
        candidates: Sequence[tuple[str, str | None]],
        rows: Sequence[str] | None = None,
    ) -> list[tuple[int, float]]:
        """Put the candidates in order.

        Args:
            query: The full-width vector of the query.
            candidates: Text and title of each, exactly as the index embedded them; a vector that
                the store lacks is computed, and stored.
            rows: What ``nearest`` returned.

        Returns:
            Positions in ``candidates`` and full-width cosine similarities, best first; at most
            ``limit``. Equals keep their order.

        Raises:
            CollectionMismatch: If a row of ``compact`` is gone, or has other words by now.
            EmbeddingError: As ``Embedder.embed``.
        """
        if self.compact is not None and rows is not None:
            self.compact.confirm(rows, candidates)
        texts = [text for text, _ in candidates]
        titles = [title for _, title in candidates] if self.embedder.takes_titles else None
        similarities = self._full.embed(texts, titles=titles) @ query
        order = np.argsort(-similarities, kind="stable")[: self.limit]
        return [(int(place), float(similarities[place])) for place in order]

    @property
    def _full(self) -> Embedder:
        return self.embedder.replaced(dimensions=None, progress=False)
