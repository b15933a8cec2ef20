"""The name of a checkpoint's weights: what tells them from all others."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gemma_embed.errors import ModelCorrupt
from gemma_embed.files import cache_folder
from gemma_embed.runtimes.local.files import File, check_unchanged

_COMMIT = re.compile("[0-9a-f]{40}")
_HASH = re.compile("sha256:[0-9a-f]{64}")
# A file changed twice within a tick of the clock looks unchanged: what is this new is not cached.
_SETTLED = 2.0


def revision_of(folder: Path, files: Sequence[File]) -> str:
    """Return the hub's commit, if all files are as its library put them; else their SHA-256.

    The hash of a local folder is computed once, 1.2 GB taking seconds, and cached in the user's
    cache folder until one of the files changes.

    Args:
        folder: The checkpoint's.
        files: Those that decide vectors, as they were when they were judged.

    Raises:
        ModelCorrupt: If one cannot be read any more.
        ModelChanged: If one changed since.
    """
    if _is_snapshot(folder, files):
        return folder.name
    check_unchanged(files)
    state = [str(folder.resolve()), stamp(folder, files)]
    key = hashlib.sha256(json.dumps(state).encode()).hexdigest()
    caches = cache_folder()
    cached = caches / "revisions" / key if caches is not None else None
    if cached is not None:
        with suppress(OSError, ValueError):
            # Only a complete hash counts, so it need not be written in one step.
            known = cached.read_text(encoding="utf-8")
            if _HASH.fullmatch(known):
                return known
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.path.relative_to(folder).as_posix().encode() + b"\0")
        _add(file.path, digest)
    check_unchanged(files)
    revision = f"sha256:{digest.hexdigest()}"
    newest = max(file.touched for file in files) / 1e9
    if cached is not None and time.time() - newest > _SETTLED:
        # A cache that cannot be written is computed again.
        with suppress(OSError):
            cached.parent.mkdir(parents=True, exist_ok=True)
            cached.write_text(revision, encoding="utf-8")
    return revision


def stamp(folder: Path, files: Sequence[File]) -> list[object]:
    """Return what changes with each file's name and content, without reading it: JSON values."""
    return [
        [file.path.relative_to(folder).as_posix(), file.content, file.identity[1], file.touched]
        for file in files
    ]


def _is_snapshot(folder: Path, files: Sequence[File]) -> bool:
    # The hub's library links to its blobs. What is no link was put there by somebody else (or by
    # that library on a system without links), and the commit does not name its content.
    if folder.parent.name != "snapshots" or not _COMMIT.fullmatch(folder.name):
        return False
    blobs = (folder.parent.parent / "blobs").resolve()
    return all(file.path.resolve().parent == blobs for file in files)


def _add(path: Path, digest: hashlib._Hash) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read any more; download the model again") from error
