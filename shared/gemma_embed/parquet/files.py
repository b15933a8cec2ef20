"""The files in which a job's results are."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from gemma_embed.errors import CollectionDamaged, CollectionMismatch
from gemma_embed.files import expanded
from gemma_embed.parquet.columns import FINGERPRINT

logger = logging.getLogger("gemma_embed")

# Readers of Parquet folders pass over such names.
_ASIDE = "_half-written-"


@dataclass(frozen=True)
class Place:
    """A file, and where it is."""

    system: fs.FileSystem
    path: str

    def opened(self) -> pq.ParquetFile | None:
        """Open the file; None for one without its end."""
        try:
            return pq.ParquetFile(self.path, filesystem=self.system)
        except pa.ArrowInvalid:
            # A writer adds the footer last: without it nothing of the file can be read.
            return None


def places(folder: str | Path) -> Iterator[Place]:
    """Yield the Parquet files of a folder."""
    if "://" in str(folder):
        system, path = fs.FileSystem.from_uri(str(folder))
    else:
        system, path = fs.LocalFileSystem(), str(expanded(folder))
    files = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
    for each in sorted(files, key=lambda each: each.path):
        name = each.base_name
        if name[0] in "._":
            continue
        if each.type == fs.FileType.Directory:
            raise CollectionDamaged(
                f"{folder} has the folder {name!r}, and results are read from the folder itself "
                "only: write them without partition_cols, or move that folder elsewhere"
            )
        if name.endswith(".parquet"):
            yield Place(system, each.path)


def put_aside(place: Place) -> None:
    """Rename a half-written file, with a warning."""
    head, _, name = place.path.rpartition("/")
    place.system.move(place.path, f"{head}/{_ASIDE}{name}")
    logger.warning("%s is half written, and was renamed to %s%s", place.path, _ASIDE, name)


def read(file: pq.ParquetFile, place: Place, columns: Sequence[str]) -> pa.Table:
    """Return columns of a file; raises as ``check_columns``."""
    check_columns(file, place, columns)
    return file.read(columns=list(columns))


def check_columns(file: pq.ParquetFile, place: Place, columns: Sequence[str]) -> None:
    """Refuse a file that lacks a column: raises CollectionDamaged."""
    there = file.schema_arrow.names
    missing = [name for name in columns if name not in there]
    if missing:
        raise CollectionDamaged(
            f"{place.path} has no column {missing[0]!r}, but {', '.join(there)}: it is not of this "
            "job, or its column has another name"
        )


def check_space(rows: pa.Table, fingerprint: str, place: Place) -> None:
    """Refuse rows of another fingerprint: raises CollectionMismatch."""
    others = [each for each in pc.unique(rows[FINGERPRINT]).to_pylist() if each != fingerprint]
    if others:
        raise CollectionMismatch(
            f"{place.path} has vectors of another space, fingerprint {others[0]}, not "
            f"{fingerprint}: another model, width, prompt or setting made them; give each its own "
            "folder"
        )
