"""Evidence, row by row, that a collection can be searched.

In a process of its own for a folder, because a damaged one can take the process down that opens it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemma_embed.chroma.failures import RECREATE
from gemma_embed.chroma.place import Place, folder_client, paused
from gemma_embed.chroma.stored import pages
from gemma_embed.errors import CollectionDamaged, CollectionError
from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

_MOST_THREADS = 8
_QUERIES = 100
# Asked for at first, and then for rows that were not among these.
_NEIGHBOURS = (5, 100)
_SAME_PLACE = 1e-5
# By number; a system may lack some.
_CRASHES = {
    getattr(signal, name, None): name
    for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
}
# Isolated (-I), so that a module in the working directory is never run by mistake.
_PROGRAM = f"import os, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); from {__name__} import main; main()"  # noqa: E501


def examine(collection: Collection, dimensions: int) -> int:
    """Read every vector and search for it.

    Args:
        collection: In cosine space.
        dimensions: Width that vectors should have.

    Returns:
        How many rows there are, all of them found.

    Raises:
        CollectionDamaged: If a row has no usable vector, or a search does not find it.
        Exception: Whatever Chroma raises on a damaged collection.
    """
    rows = 0
    lost: list[str] = []
    unfound: list[str] = []
    # Chroma searches on one thread a call, a millisecond and more for each row.
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        for page in pages(collection, dimensions):
            rows += len(page)
            lost += [row for row, held in page.items() if held.vector is None]
            found = [(row, held.vector) for row, held in page.items() if held.vector is not None]
            parts = (found[start : start + _QUERIES] for start in range(0, len(found), _QUERIES))
            for missed in pool.map(lambda part: _unfound(collection, part), parts):
                unfound += missed
    if rows != collection.count():
        raise CollectionDamaged(
            f"the collection {collection.name!r} lists {rows} rows and counts "
            f"{collection.count()}; {RECREATE}"
        )
    if lost or unfound:
        raise CollectionDamaged(
            f"{len(lost)} of {rows} rows of the collection {collection.name!r} have no usable "
            f"vector and a search does not find {len(unfound)}, {[*lost, *unfound][0]!r} first; "
            f"{RECREATE}"
        )
    return rows


def _unfound(collection: Collection, rows: list[tuple[str, Vectors]]) -> list[str]:
    for neighbours in _NEIGHBOURS:
        if rows:
            answer = collection.query(
                query_embeddings=np.array([vector for _, vector in rows]),
                n_results=neighbours,
                include=["distances"],
            )
            columns = zip(rows, answer["ids"], answer["distances"] or [], strict=True)
            # Where more rows than were asked for have one and the same vector, any of them will do.
            rows = [
                row
                for row, ids, near in columns
                if row[0] not in ids and not (near and max(near) < _SAME_PLACE)
            ]
    return [row for row, _ in rows]


def examine_folder(
    client: ClientAPI, folder: Path, name: str, dimensions: int, timeout: float | None
) -> int:
    """Examine a collection in a process of its own, while the client of its folder is paused.

    Returns:
        How many rows there are, all of them found.

    Raises:
        CollectionDamaged: If Chroma fails on it there, or takes the process down.
        CollectionError: If that process fails for another reason, or takes too long.
    """
    what = f"the collection {name!r} in {folder}"
    # Two processes must not have a folder open while one of them may write.
    with paused(client), tempfile.TemporaryDirectory() as place:
        # Not standard output, which libraries print to.
        result = Path(place) / "result"
        command = [sys.executable, "-I", "-c", _PROGRAM, os.pathsep.join(_import_paths())]
        command += [str(result), str(folder), client.tenant, client.database, name, str(dimensions)]
        # Never written to: it closes when this process dies.
        alive, ours = os.pipe()
        try:
            run = subprocess.run(  # noqa: S603 - this package's own program
                command, stdin=alive, capture_output=True, check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise CollectionError(
                f"checking {what} took more than {timeout:g} s: allow more by timeout="
            ) from error
        finally:
            os.close(alive)
            os.close(ours)
        found = json.loads(result.read_text()) if run.returncode == 0 else None
    if isinstance(found, int):
        return found
    if isinstance(found, str):
        raise CollectionDamaged(found)
    if died := _CRASHES.get(-run.returncode):
        raise CollectionDamaged(f"reading {what} took a process down ({died}); {RECREATE}")
    said = run.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
    raise CollectionError(
        f"{what} could not be checked: the process that reads it ended with {run.returncode} "
        f"({said[0]})"
    )


def _import_paths() -> list[str]:
    """The caller's import paths without the working directory."""
    here = Path.cwd()
    paths = [path for path in sys.path if path and Path(path).resolve() != here]
    root = str(Path(__file__).resolve().parents[2])
    # Last, in case it is the working directory.
    return paths if root in paths else [*paths, root]


def _end_with_the_caller() -> None:
    # Whoever comes after a killed caller must not find the folder open.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


def main() -> None:
    """Examine the collection that the command line names; write the number of rows, or the damage.

    The file of the result is JSON.
    """
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    result, folder, tenant, database, name, dimensions = sys.argv[1:]
    found: int | str
    try:
        with Place(folder).explained(name):
            client = folder_client(Path(folder))
            client.set_tenant(tenant, database)
            collection = client.get_collection(name, embedding_function=None)
            found = examine(collection, int(dimensions))
    except CollectionDamaged as error:
        found = str(error)
    Path(result).write_text(json.dumps(found))
