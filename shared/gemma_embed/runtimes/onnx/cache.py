"""Files made from a checkpoint once, and kept."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gemma_embed
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.local.checkpoint import Checkpoint

_FOLDER = "gemma-embed"


def kept(checkpoint: Checkpoint, kind: str, version: int, write: Callable[[Path], None]) -> Path:
    """Return a folder that was made from a checkpoint, and make it if it is not there.

    It lies beside the weights; where nothing can be written there, or the weights are part of this
    package, in the user's cache folder. It is whole or not there at all, also after a crash and
    with several processes at once. What was made from other files of the same checkpoint is
    removed.

    Args:
        checkpoint: What it is made from: known by names, sizes and times of its files.
        kind: What it is.
        version: Of what writes it.
        write: Fills an empty folder.

    Raises:
        ConfigurationError: If it can be written nowhere.
    """
    name = f"{kind}-{version}-{_stamp(checkpoint)}"
    places = list(_places(checkpoint.folder))
    for place in places:
        if (place / name).is_dir():
            return place / name
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
            new.chmod(0o755)
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
        if not place.is_dir():
            raise


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
    # Times and sizes instead of a hash of the contents, which takes longer than the loading.
    digest = hashlib.sha256()
    for file in checkpoint.files:
        name = file.path.relative_to(checkpoint.folder).as_posix()
        size, changed = file.content
        digest.update(f"{name}\0{size}\0{changed}\0".encode())
    return digest.hexdigest()[:16]
