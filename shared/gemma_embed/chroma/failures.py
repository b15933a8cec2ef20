"""What Chroma's errors mean, and what to do."""

from __future__ import annotations

import re
from pathlib import Path

from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
)

# Result codes of SQLite and of the system, as Chroma's messages have them.
_READ_ONLY = r"(code: (8|14)|os error (13|30))\)"
_LOST = r"code: (11|26)\)"
_BUSY = r"code: (5|6)\)"
_FULL = r"(code: 13|os error 28)\)"
# Chroma's own work after a write, which it reports as a wrong argument when it cannot read its log.
_ITS_OWN = re.compile("Error in compaction")
RECREATE = (
    "call recreate(passages) with all the passages it was filled from; their vectors come from the "
    "embedding store, without the model"
)


def explanation(error: BaseException, name: str, place: Path | str) -> EmbeddingError | None:
    """Return this package's error for one of Chroma's; None for any other.

    Args:
        error: What was raised while Chroma was at work.
        name: The collection's.
        place: Its folder, or the server.
    """
    from chromadb.errors import ChromaError, InternalError, InvalidArgumentError, NotFoundError
    from httpx import TransportError

    what, said = f"the collection {name!r} in {place}", f"{type(error).__name__}: {error}"
    if isinstance(error, TransportError):
        return ConnectionFailed(
            f"{place} cannot be reached ({said}): start it (chroma run), or check host and port"
        )
    # A panic of Chroma's Rust code is not an Exception.
    panic = type(error).__name__ == "PanicException"
    if not isinstance(error, ChromaError) and not panic:
        return None
    if isinstance(error, InvalidArgumentError) and not _ITS_OWN.search(said):
        return ConfigurationError(f"Chroma does not take these arguments for {what}: {error}")
    if isinstance(error, NotFoundError):
        return CollectionError(f"{what} was deleted meanwhile ({error}): open() again")
    if isinstance(place, Path) and re.search(_READ_ONLY, said):
        return read_only(place)
    if isinstance(place, Path) and re.search(_LOST, said):
        return lost(place, error)
    if re.search(_BUSY, said):
        return CollectionLocked(
            f"another program has {what} open ({error}): close it, or share a Chroma server"
        )
    known = re.search(f"{_READ_ONLY}|{_FULL}", said)
    if panic or (isinstance(error, InternalError) and not known):
        return CollectionDamaged(f"Chroma failed on {what} ({said}); if it fails again, {RECREATE}")
    return CollectionError(f"Chroma failed on {what}: {said}")


def read_only(folder: Path) -> CollectionError:
    """The error of a folder that Chroma may not write to."""
    return CollectionError(
        f"Chroma cannot open {folder}, which this user may not write to: copy the folder, or let "
        "its owner run a Chroma server (chroma run)"
    )


def lost(folder: Path, reason: object) -> CollectionDamaged:
    """The error of a folder whose database is damaged, or another program's."""
    return CollectionDamaged(
        f"Chroma cannot open {folder} ({reason}): move this folder away, start the program again "
        "and ingest the documents. Vectors in the embedding store, which by default is a file "
        "outside this folder, are not computed again"
    )
