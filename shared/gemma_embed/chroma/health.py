"""Proof, row by row, that a collection can be searched.

In a process of its own on a folder, because a damaged one can take the process down that opens it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemma_embed.chroma.ingestion import whole_vectors
from gemma_embed.chroma.rows import ids_of
from gemma_embed.errors import CollectionDamaged

if TYPE_CHECKING:
    from chromadb import Collection

_MOST_THREADS = 8
_QUERIES = 100
_NEIGHBOURS = 5
_MANY_NEIGHBOURS = 100
_SAME_PLACE = 1e-5


@dataclass(frozen=True)
class Health:
    """What was found.

    Attributes:
        rows: Rows looked at: all.
        lost: Ids of rows without a usable vector.
        unfound: Ids of rows that a search for their own vector does not find.
    """

    rows: int
    lost: tuple[str, ...]
    unfound: tuple[str, ...]


def examine(collection: Collection, dimensions: int) -> Health:
    """Read every vector and search for it.

    Args:
        collection: In cosine space.
        dimensions: Width that vectors should have.

    Raises:
        Exception: Whatever Chroma raises on a damaged collection.
    """
    rows = 0
    lost: list[str] = []
    unfound: list[str] = []
    # Chroma searches on one thread a call, a millisecond and more for each row.
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for page in ids_of(collection):
            rows += len(page)
            got = collection.get(ids=page, include=["embeddings"])
            vectors = got["embeddings"] if got["embeddings"] is not None else np.empty((0, 0))
            whole = dict(zip(got["ids"], whole_vectors(vectors, dimensions), strict=True))
            lost += [row for row in page if not whole.get(row)]
            sound = [(row, v) for row, v in zip(got["ids"], vectors, strict=True) if whole[row]]
            parts = (sound[start : start + _QUERIES] for start in range(0, len(sound), _QUERIES))
            for found in pool.map(lambda part: _unfound(collection, part, _NEIGHBOURS), parts):
                unfound += found
    if rows != collection.count():
        raise CollectionDamaged(f"lists {rows} rows and counts {collection.count()}")
    return Health(rows, tuple(lost), tuple(unfound))


def _unfound(
    collection: Collection, rows: list[tuple[str, np.ndarray]], neighbours: int
) -> list[str]:
    if not rows:
        return []
    answer = collection.query(
        query_embeddings=[vector for _, vector in rows], n_results=neighbours, include=["distances"]
    )
    distances = answer["distances"] or []
    # Where more rows than were asked for have one and the same vector, any of them will do.
    failed = [
        (row, vector)
        for (row, vector), ids, near in zip(rows, answer["ids"], distances, strict=True)
        if row not in ids and not (near and max(near) < _SAME_PLACE)
    ]
    if neighbours < _MANY_NEIGHBOURS:
        return _unfound(collection, failed, _MANY_NEIGHBOURS)
    return [row for row, _ in failed]


def examine_folder(folder: Path, tenant: str, database: str, name: str, dimensions: int) -> Health:
    """Examine a collection in a process of its own.

    Raises:
        CollectionDamaged: If that process fails or dies.
    """
    program = f"from {__name__} import main; main()"
    place = (str(folder), tenant, database, name)
    command = [sys.executable, "-c", program, *place, str(dimensions)]
    # Never written to: it closes when this process dies.
    alive, ours = os.pipe()
    try:
        run = subprocess.run(  # noqa: S603 - ours
            command, stdin=alive, capture_output=True, text=True, check=False
        )
    finally:
        os.close(alive)
        os.close(ours)
    if run.returncode == 0:
        found = json.loads(run.stdout)
        return Health(found["rows"], tuple(found["lost"]), tuple(found["unfound"]))
    died = f"was killed by signal {-run.returncode}" if run.returncode < 0 else "failed"
    reason = run.stderr.strip().splitlines()[-1:] or ["without a word"]
    raise CollectionDamaged(
        f"reading the collection {name!r} in {folder} {died}: {reason[0]}; call rebuild()"
    )


def _end_with_the_caller() -> None:
    # Whoever comes after a killed caller must not find the folder open.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Examine the collection that the command line names, and print a JSON object."""
    from gemma_embed.chroma.client import folder_client

    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    folder, tenant, database, name, dimensions = sys.argv[1:]
    client = folder_client(Path(folder))
    client.set_tenant(tenant, database)
    health = examine(client.get_collection(name, embedding_function=None), int(dimensions))
    sys.stdout.write(json.dumps(asdict(health)))
