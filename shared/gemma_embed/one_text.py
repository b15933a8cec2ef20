"""Errors that are one text's alone, so that the others can go on without it."""

from __future__ import annotations

from gemma_embed.errors import (
    BadResponse,
    EmbeddingError,
    InvalidInput,
    OutOfMemory,
    ServerFailed,
)

# Texts of one call that the runtime may fail on. With more, it is not the texts' fault.
_MOST_FAULTS = 3


class TextFaults:
    """Tells, over one call, which errors are one text's alone."""

    def __init__(self) -> None:
        self._of_runtime = 0

    def excuses(self, error: EmbeddingError) -> bool:
        """Whether the other texts can go on without the one that ``error.index`` names.

        A text that cannot be embedded always is at fault itself. That the runtime fails on a
        text is believed of three of them.
        """
        self._of_runtime += isinstance(error, (BadResponse, ServerFailed))
        one = isinstance(error, (InvalidInput, OutOfMemory, BadResponse, ServerFailed))
        return error.index is not None and one and self._of_runtime <= _MOST_FAULTS
