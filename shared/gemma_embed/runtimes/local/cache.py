"""Files made from a checkpoint once and cached: in the user's cache folder, by content."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gemma_embed.errors import ConfigurationError
from gemma_embed.files import cache_folder
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.revision import stamp

logger = logging.getLogger("gemma_embed")

_CHECKSUM = "crc32"
_SOURCE = "source"
_ENTRY = re.compile(
    r"(?P<unfinished>\.)?(?P<name>.+-[0-9a-f]{16})-(?P<kind>\w+)-v(?P<version>\d+)"
    r"(?(unfinished)-.+)"
)
# Writing takes a minute at most; what is unfinished for longer, a killed process left.
_SECONDS_UNFINISHED = 3600
_SECONDS_UNUSED = 90 * 24 * 3600


class Cache:
    """Folders made from one checkpoint, called ``<model>-<key>-<kind>-v<version>``.

    The key stands for the content of the checkpoint's files, so equal copies of a model share what
    is made from them. A folder is complete or absent, also after a crash and with several processes
    at once; a damaged one is recreated. Writing one removes what was made by older versions or from
    former files of the same checkpoint, and what was not used for three months.
    """

    def __init__(self, checkpoint: Checkpoint, place: Path | None) -> None:
        """Take a checkpoint.

        Args:
            checkpoint: What the folders are made from.
            place: Where they are; None for the user's cache folder, which is also used where
                ``place`` is full or cannot be written to.
        """
        self._files = checkpoint.files
        self._source = str(checkpoint.folder.resolve())
        self._places = [folder for folder in (place, cache_folder()) if folder is not None]
        self._name = f"{checkpoint.model.name}-{_key(checkpoint)}"

    def folder(self, kind: str, version: int, write: Callable[[Path], None]) -> Path:
        """Return a folder, and create it if it does not exist.

        Args:
            kind: What is in it.
            version: Of what writes it.
            write: Fills an empty folder.

        Raises:
            ConfigurationError: If it cannot be written anywhere.
            ModelChanged: If the checkpoint changed while it was written.
        """
        reasons: list[str] = []
        failure = None
        for place in self._places:
            entry = place / f"{self._name}-{kind}-v{version}"
            try:
                if not self._has(entry):
                    self._create(entry, write)
                    for other in place.iterdir():
                        if self._is_outdated(other, kind, version):
                            _remove(other)
            except OSError as error:
                failure = error
                reasons.append(f"{place}: {error.strerror or error}")
                continue
            if reasons:
                logger.warning("%s is used instead (%s)", place, reasons[0])
            return entry
        raise ConfigurationError(
            f"the {kind} files of this model cannot be written ({'; '.join(reasons)}); free some "
            "space, or name another folder with cache_dir="
        ) from failure

    def _has(self, entry: Path) -> bool:
        if not entry.is_dir():
            return False
        if not is_valid(entry):
            logger.warning("%s is damaged, and not used", entry)
            _remove(entry)
            return False
        with suppress(OSError):
            os.utime(entry)  # In use: see _SECONDS_UNUSED.
        return True

    def _create(self, entry: Path, write: Callable[[Path], None]) -> None:
        entry.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
        try:
            write(new)
            # Another model's would be found under this one's key.
            check_unchanged(self._files)
            (new / _SOURCE).write_text(self._source, encoding="utf-8")
            (new / _CHECKSUM).write_text(_checksum(new))
            new.chmod(0o755)
            _flush(new)
            _move(new, entry)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _is_outdated(self, other: Path, kind: str, version: int) -> bool:
        match = _ENTRY.fullmatch(other.name)
        if match is None:
            return False
        try:
            age = time.time() - other.stat().st_mtime
            if match["unfinished"]:
                return age > _SECONDS_UNFINISHED
            if age > _SECONDS_UNUSED:
                return True
            if match["kind"] != kind:
                return False
            if int(match["version"]) < version:
                return True
            source = (other / _SOURCE).read_text(encoding="utf-8")
            return match["name"] != self._name and source == self._source
        except OSError:  # Another process removed it.
            return False


def _move(new: Path, entry: Path) -> None:
    try:
        new.rename(entry)
    except OSError:
        # Another process was faster: what it wrote is the same.
        if not is_valid(entry):
            raise


def is_valid(folder: Path) -> bool:
    """Tell whether a cached folder is complete, and as it was written."""
    try:
        return (folder / _CHECKSUM).read_bytes() == _checksum(folder).encode()
    except OSError:
        return False


def _checksum(folder: Path) -> str:
    # The fastest there is, 4 GB/s: it is computed at every load. Read and not mapped, so that no
    # page of it counts as this process's memory.
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
    """Flush a folder to the disk: a power failure cannot leave its name with holes in the files."""
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
    # Renamed first, in one step: another process may be about to put a valid one there.
    gone = folder.with_name(f".{folder.name.lstrip('.')}-{os.getpid()}")
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _key(checkpoint: Checkpoint) -> str:
    parts: list[object] = [checkpoint.max_tokens, checkpoint.revision]
    if not checkpoint.revision.startswith("sha256:"):
        # A commit names what was downloaded, and not what somebody wrote over it since.
        parts.append(stamp(checkpoint.folder, checkpoint.files))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
