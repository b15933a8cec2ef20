"""The core's errors as LangChain knows them.

LangChain's retries and fallbacks ask an error for ``is_retryable``, which its ``ModelError`` tree
has (``langchain_core.exceptions``). The adapter raises classes that are both: an ``except`` clause
for either catches them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions

from gemma_embed import errors

_LANGCHAIN_NAMES: dict[type[errors.EmbeddingError], str] = {
    errors.InputTooLong: "ContextOverflowError",
    errors.ModelNotFound: "ModelNotFoundError",
    errors.ModelCorrupt: "ModelError",
    errors.WrongModel: "ModelError",
    errors.ModelChanged: "ModelError",
    errors.OutOfMemory: "ModelError",
    errors.BadResponse: "ModelError",
    errors.ServerRefused: "ModelError",
    errors.ConnectionFailed: "ModelConnectionError",
    errors.ServerTimeout: "ModelTimeoutError",
    errors.ServerBusy: "ModelRateLimitError",
    errors.ServerFailed: "ModelAPIError",
}


def _classes() -> dict[type[errors.EmbeddingError], type[errors.EmbeddingError]]:
    classes = {}
    for ours, name in _LANGCHAIN_NAMES.items():
        # Older versions of langchain-core have no such tree.
        theirs = getattr(exceptions, name, None)
        if theirs is not None:
            members = {"__module__": __name__, "__doc__": ours.__doc__}
            classes[ours] = type(ours.__name__, (ours, theirs), members)
    return classes


_CLASSES = _classes()
# Pickle finds a class by its module and name.
globals().update({each.__name__: each for each in _CLASSES.values()})


@contextmanager
def langchain_errors() -> Iterator[None]:
    """Make the core's errors LangChain's too."""
    try:
        yield
    except errors.EmbeddingError as error:
        error.__class__ = _CLASSES.get(type(error), type(error))
        raise
