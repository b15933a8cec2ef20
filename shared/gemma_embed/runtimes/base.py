"""What a runtime does: prompted texts in, full-width vectors out, and nothing else.

A runtime adds no prompt, cuts no vector and checks none: ``gemma_embed.gate`` checks every batch.
So a runtime of one's own is short:

    class MyRuntime(Runtime):
        model = EMBEDDINGGEMMA_300M
        identity = Identity("embeddinggemma-300m", "mine", "1", "mine", "float32", 2048)

        def embed(self, texts, *, truncate=False):
            yield Batch(range(len(texts)), my_vectors(texts))
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from gemma_embed.identity import Identity
from gemma_embed.models import Model
from gemma_embed.prompts import Prompts


@dataclass(frozen=True)
class Batch:
    """Vectors that are ready, as the runtime made them.

    Attributes:
        rows: Positions in the list of texts that the runtime was given.
        vectors: Shape (len(rows), model.width), any float type or lists of numbers; row i for text
            rows[i]. Of any length: the gate normalises them.
    """

    rows: Sequence[int]
    vectors: npt.ArrayLike


@dataclass(frozen=True)
class TooLong:
    """A text with more tokens than the model reads; it has no vector.

    Attributes:
        row: Position in the list of texts that the runtime was given.
        tokens: Its tokens, special tokens included; None if they are unknown, because a server
            does not say or the text is too long to count.
    """

    row: int
    tokens: int | None


class Runtime(Protocol):
    """Runs one model.

    Implementations load nothing before the first use, may be called from several threads at once,
    and can be pickled (settings travel, weights and connections do not).
    """

    @property
    @abstractmethod
    def model(self) -> Model:
        """The row of the model table."""

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """What decides the numbers. May load the model or ask the server."""

    @property
    def prompts(self) -> Prompts:
        """The prompts to use: the model's, unless the checkpoint states others. May load."""
        return self.model.prompts

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments that make an equal runtime elsewhere: JSON values, no secrets."""
        return {}

    @property
    def description(self) -> str:
        """What error messages call it: a class, and a server's address; nothing secret."""
        return type(self).__name__

    @abstractmethod
    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors, batch by batch, in any order.

        Args:
            texts: Prompted texts; at least one, each text once.
            truncate: What to do with a text of too many tokens: read its beginning, or report it
                as ``TooLong`` and go on with the others.

        Yields:
            Every row exactly once, in a ``Batch`` as soon as it is computed or as ``TooLong``, the
            latter as early as possible.

        Raises:
            EmbeddingError: Anything that stops the work; ``index`` is a position in ``texts``.
        """
