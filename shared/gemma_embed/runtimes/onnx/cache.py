"""Files made from a checkpoint once, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gemma_embed
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged

logger = logging.getLogger("gemma_embed")

_FOLDER = "gemma-embed"
_CHECKSUM = "crc32"
# Writing takes a minute at most; what has been unfinished for longer, a killed process left.
_SECONDS_UNFINISHED = 3600


def kept(checkpoint: Checkpoint, kind: str, version: int, write: Callable[[Path], None]) -> Path:
    """Return a folder that was made from a checkpoint, and make it if it is not there.

    It lies beside the weights; where nothing can be written there, or the weights are part of this
    package, in the user's cache folder. It is whole or not there at all, also after a crash and
    with several processes at once; damaged since, it is made again. What was made from other files
    of the same checkpoint is removed.

    Args:
        checkpoint: What it is made from: known by its files' names, sizes, times and places.
        kind: What it is.
        version: Of what writes it.
        write: Fills an empty folder.

    Raises:
        ConfigurationError: If it can be written nowhere.
        ModelChanged: If the checkpoint changed while it was made.
    """
    name = f"{kind}-{version}-{_stamp(checkpoint)}"
    places = list(_places(checkpoint.folder))
    for place in places:
        _remove_unfinished(place)
        if (place / name).is_dir():
            if _is_sound(place / name):
                return place / name
            logger.warning("%s is damaged, and not used", place / name)
            _remove(place / name)
    refused: OSError | None = None
    for place in places:
        try:
            place.mkdir(parents=True, exist_ok=True)
            new = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place))
        except OSError as error:
            refused = error
            continue
        try:
            write(new)
            # Another model's would be found under this one's name.
            check_unchanged(checkpoint.files)
            (new / _CHECKSUM).write_text(_checksum(new))
            new.chmod(0o755)
            _flush(new)
            _move(new, place / name)
        except OSError as error:
            raise ConfigurationError(
                f"{place} has no room for the {kind} of this model ({error.strerror}); free some "
                "space, or set XDG_CACHE_HOME to a folder with more and make this one read-only"
            ) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        for old in place.glob(f"{kind}-*"):
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)
        return place / name
    raise ConfigurationError(
        f"the {kind} of this model can be written neither to {' nor to '.join(map(str, places))}; "
        "set XDG_CACHE_HOME to a folder that can be written to"
    ) from refused


def _move(new: Path, place: Path) -> None:
    try:
        new.rename(place)
    except OSError:
        # Another process was faster: what it wrote is the same.
        if not _is_sound(place):
            raise


def _is_sound(folder: Path) -> bool:
    try:
        return (folder / _CHECKSUM).read_bytes() == _checksum(folder).encode()
    except OSError:
        return False


def _checksum(folder: Path) -> str:
    # The fastest there is, 4 GB/s: it is computed at every loading. Read and not mapped, so that
    # no page of it counts as this process's memory.
    total = 0
    buffer = memoryview(bytearray(1 << 20))
    for path in sorted(folder.iterdir()):
        if path.name != _CHECKSUM:
            total = zlib.crc32(f"{path.name}\0{path.stat().st_size}\0".encode(), total)
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    total = zlib.crc32(buffer[:count], total)
    return f"{total:08x}"


def _flush(folder: Path) -> None:
    """Put all of a folder on the disk, lest a power failure leaves its name with holes in it."""
    if sys.platform == "win32":
        return  # Cannot flush what is open for reading only; the checksum finds holes, too.
    for path in folder.iterdir():
        _flush_one(path)
    with suppress(OSError):  # Not every file system does it for folders.
        _flush_one(folder)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(folder: Path) -> None:
    # Its name goes first, in one step: another process may be about to put a sound one there.
    gone = folder.with_name(f".{folder.name}-{os.getpid()}")
    try:
        folder.rename(gone)
    except OSError:
        return
    shutil.rmtree(gone, ignore_errors=True)


def _remove_unfinished(place: Path) -> None:
    for folder in place.glob(".*"):
        try:
            age = time.time() - folder.stat().st_mtime
        except OSError:
            continue
        if age > _SECONDS_UNFINISHED:
            shutil.rmtree(folder, ignore_errors=True)


def _places(folder: Path) -> tuple[Path, ...]:
    folder = folder.resolve()
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    base = Path(os.environ.get(variable) or Path.home() / ".cache")
    owner = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    shared = base / _FOLDER / f"{folder.name}-{owner}"
    if folder.is_relative_to(Path(gemma_embed.__file__).resolve().parent):
        return (shared,)
    return (folder / _FOLDER, shared)


def _stamp(checkpoint: Checkpoint) -> str:
    # Instead of a hash of the contents, which takes longer than the loading. The device is left
    # out: network file systems give it another number each time they are mounted.
    parts: list[object] = [checkpoint.max_tokens]
    for file in checkpoint.files:
        name = file.path.relative_to(checkpoint.folder).as_posix()
        parts += [name, *file.content, file.identity[1], file.touched]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
