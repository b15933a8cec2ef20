"""What a runtime must do: turn prompted texts into full-width vectors, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gemma_embed.identity import Identity
from gemma_embed.models import Model
from gemma_embed.prompts import Prompts
from gemma_embed.vectors import Vectors


@dataclass(frozen=True)
class Batch:
    """Vectors that are ready.

    Attributes:
        rows: Which of the texts handed in.
        vectors: float32, shape (len(rows), model.width), row i for text rows[i], of norm 1.
        tokens: Tokens that the model read for all of them; None if a server does not say.
    """

    rows: Sequence[int]
    vectors: Vectors
    tokens: int | None


@dataclass(frozen=True)
class TooLong:
    """A text that the model cannot read whole; no vector was made for it.

    Attributes:
        row: Which of the texts handed in.
        tokens: How many tokens it has; None if a server does not say, or they are too many to
            count.
    """

    row: int
    tokens: int | None


class Runtime(Protocol):
    """Runs one model. Adds no prompt and cuts no vector.

    Implementations load nothing before the first use, may be called from several threads at once,
    and can be pickled (settings travel, weights and connections do not).
    """

    @property
    def model(self) -> Model:
        """The row of the model table."""

    @property
    def settings(self) -> dict[str, Any]:
        """Constructor arguments that make an equal runtime elsewhere: JSON values, no secrets."""

    @property
    def prompts(self) -> Prompts:
        """The prompts to use: the model's, unless the checkpoint states others. May load."""

    @property
    def identity(self) -> Identity:
        """What decides the numbers. May load the model or ask the server."""

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors, batch by batch, in any order.

        Args:
            texts: Prompted texts; not empty, no text twice.
            truncate: What to do with a text of too many tokens: read its beginning, or report it
                as ``TooLong`` and go on with the others.

        Yields:
            Every row exactly once, in a ``Batch`` as soon as it is computed or as ``TooLong``,
            these as early as they are known.

        Raises:
            EmbeddingError: Anything that stops the work. Indices in messages and in ``index``
                are positions in ``texts``.
        """
