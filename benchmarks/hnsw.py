"""HNSW graphs, usearch's and Chroma's, in one step and in two, beside exact search.

    pip install usearch
    python benchmarks/hnsw.py --real FOLDER --indexes FOLDER
    python benchmarks/hnsw.py --real FOLDER --indexes FOLDER --vectors 1000000

``--real`` has what ``documentation.py`` wrote; beyond its vectors, ones of the same mean and
covariance are made (``packed.py``). Indexes that are not in ``--indexes`` are built there first, by
one thread: minutes for 50,000 vectors, hours and 25 GB for a million. Each is measured in a process
of its own; ``--only "usearch 256 int8" "chroma 256 float32"`` leaves out the others.

usearch's graphs have Chroma's defaults: 16 edges a vector, 100 candidates at work while they are
built and searched (``--work`` for other searches). Full-width vectors for the second step are in a
memory-mapped file, for Chroma in the embedding store. Chroma is searched through LangChain's
classes, and its texts are a few letters. Prints and saves: bytes a vector on the disk and in
memory, seconds of the processor that building took, recall@10 against exact search at full width,
of the graph and (in brackets) of exact search in its width and form, in one step and after 100
candidates, of bits 800, were put in order; the median times of a search.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import packed
from langchain_chroma import Chroma
from matryoshka import Table, timed
from packed import CANDIDATES, LIMIT, WIDTHS
from pairs import in_own_process, machine, save

from gemma_embed import compact
from gemma_embed.chroma import ChromaIndex
from gemma_embed.vectors import Vectors, cut
from langchain_gemma_embed import GemmaEmbeddings, MatryoshkaRetriever

BATCH = 5000
EDGES, WORK = 16, 100
# Candidates of each form: for bits as many as ``CompactVectors`` looks at.
FORMS = {"float32": CANDIDATES, "int8": CANDIDATES, "binary": 8 * CANDIDATES}
NAMES = [f"usearch {width} {form}" for width in WIDTHS for form in FORMS]
NAMES += [f"chroma {width} float32" for width in WIDTHS]

# Where an index is, bytes on the disk and in memory; recall and milliseconds of one step, of two.
Found = tuple[Path, float, float, tuple[float, float], tuple[float, float]]


class Measurement:
    """Vectors in a folder, with the exact answers and the indexes of them."""

    def __init__(self, asked: argparse.Namespace) -> None:
        """Map the vectors; write them first where they are not there."""
        self.folder, self.work = asked.indexes, asked.work
        self.count = count = asked.vectors
        path = self.folder / f"vectors-{count}.npy"
        if not path.exists():
            parts = [np.load(asked.real / f"{name}.npy") for name in ("documents", "queries")]
            if count > len(parts[0]):
                parts[0] = packed.scaled(parts[0], count, seed=1)
            np.save(path, np.concatenate([parts[0][:count], parts[1]]))
        self.vectors: Vectors = np.load(path, mmap_mode="r")
        self.documents = self.vectors[:count]
        self.queries: Vectors = np.array(self.vectors[count : count + asked.queries])
        self.wanted = self.exact(WIDTHS[0], "float32")[:, :LIMIT]

    def exact(self, width: int, form: str) -> np.ndarray:
        """Rows that exact search in a width and form finds, best first."""
        path = self.folder / f"exact-{self.count}-{len(self.queries)}-{width}-{form}.npy"
        if not path.exists():
            starts = range(0, self.count, BATCH)
            parts = [coded(self.documents[at : at + BATCH], width, form) for at in starts]
            search = packed.usearch(np.concatenate(parts), form)
            if search is None:
                raise SystemExit("usearch is not there: pip install usearch")
            asked = cut(self.queries, width)
            np.save(path, np.array([search(query, FORMS[form]) for query in asked], np.int64))
        rows: np.ndarray = np.load(path)
        return rows

    def of(self, name: str) -> dict[str, float]:
        """Measure an index by its name, in a process that does nothing else."""
        engine, width, form = name.split()
        exact = self.exact(int(width), form)
        work = self.usearch if engine == "usearch" else self.chroma
        path, disk, used, one, two = work(int(width), form)
        best = [self.two_steps(*pair) for pair in zip(exact, self.queries, strict=True)]
        return {
            "disk_bytes": disk / self.count,
            "memory_bytes": used / self.count,
            "build_cpu_s": float(noted(path).read_text()),
            "recall_exact": packed.recall(exact[:, :LIMIT].tolist(), self.wanted),
            "recall": one[0],
            "recall_two_steps_exact": packed.recall(best, self.wanted),
            "recall_two_steps": two[0],
            "ms": one[1],
            "ms_two_steps": two[1],
        }

    def two_steps(self, rows: Any, query: Vectors) -> list[int]:
        """The best of the candidates at full width."""
        return packed.ordered(self.documents, [int(row) for row in rows], query)

    def usearch(self, width: int, form: str) -> Found:
        """Search a graph of usearch's."""
        from usearch.index import Index, MetricKind, ScalarKind

        kinds = {"float32": ScalarKind.F32, "int8": ScalarKind.I8, "binary": ScalarKind.B1}
        options = {
            "ndim": width,
            "metric": MetricKind.Hamming if form == "binary" else MetricKind.Cos,
            "dtype": kinds[form],
            "connectivity": EDGES,
            "expansion_add": WORK,
        }
        path = self.folder / f"usearch-{self.count}-{width}-{form}"
        if not path.exists():
            index = Index(**options)
            began = time.process_time()
            for start in range(0, self.count, BATCH):
                part = coded(self.documents[start : start + BATCH], width, form)
                index.add(np.arange(start, start + len(part)), part, threads=1)
            noted(path).write_text(str(time.process_time() - began))
            index.save(path)
            del index
        codes = coded(self.queries, width, form)
        before = memory()
        index = Index(**options)
        index.load(path)
        index.expansion_search = self.work
        index.search(codes, FORMS[form], threads=1)
        used = memory() - before

        def search(code: Any, limit: int) -> list[int]:
            return [int(row) for row in index.search(code, limit, threads=1).keys]

        def search_twice(code: Any, query: Vectors) -> list[int]:
            return self.two_steps(search(code, FORMS[form]), query)

        pairs = list(zip(codes, self.queries, strict=True))
        # The pages of the file are read before the clock runs.
        packed.timed(search_twice, pairs)
        one, ms = packed.timed(search, [(code, LIMIT) for code in codes])
        two, ms_two = packed.timed(search_twice, pairs)
        first, second = (packed.recall(found, self.wanted) for found in (one, two))
        return path, path.stat().st_size, used, (first, ms), (second, ms_two)

    def chroma(self, width: int, _form: str) -> Found:
        """Search a collection; at full width there is one step only."""
        rest = len(self.vectors) - self.count
        names = [f"row {n}" for n in range(self.count)] + [f"query {n}" for n in range(rest)]
        place = self.folder / f"chroma-{self.count}" / str(width)
        store = place.with_name("vectors.sqlite")
        embeddings = GemmaEmbeddings(Table(names, self.vectors), dimensions=width, store=store)
        if not noted(place).exists():
            began = time.process_time()
            rows = ({"id": str(n), "text": names[n]} for n in range(self.count))
            with ChromaIndex(place, "notes", embeddings) as index:
                index.ingest(rows, batch_size=BATCH)
            noted(place).write_text(str(time.process_time() - began))
        with ChromaIndex(place, "notes", embeddings) as index:
            index.open().modify(configuration={"hnsw": {"ef_search": self.work}})
        asked, found = names[self.count :][: len(self.queries)], []
        before = memory()
        with ChromaIndex(place, "notes", embeddings) as index:
            index.open()
            opened = Chroma(index.collection_name, embeddings, client=index.client)
            retrievers: list[Any] = [opened.as_retriever(search_kwargs={"k": LIMIT})]
            if width < WIDTHS[0]:
                retrievers += [MatryoshkaRetriever(opened, k=LIMIT, candidates=CANDIDATES)]
            for retriever in retrievers:
                timed(retriever, asked, self.wanted)
                recall, seconds = timed(retriever, asked, self.wanted)
                found.append((recall, seconds * 1000))
            used = memory() - before
        files = sum(path.stat().st_size for path in place.glob("*/*"))
        return place, files, used, found[0], found[-1]


def coded(vectors: Vectors, width: int, form: str) -> Any:
    """Cut vectors, and pack them."""
    narrow = cut(np.asarray(vectors), width)
    if form == "float32":
        return narrow
    return compact.packed(narrow, "int8" if form == "int8" else "binary")


def noted(path: Path) -> Path:
    """The file with the seconds that building took; it is there once an index is complete."""
    return path.with_name(path.name + ".seconds")


def memory() -> int:
    """Resident memory of this process in bytes, without pages of files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of documentation.py")
    parser.add_argument("--indexes", type=Path, required=True, help="folder for what is built")
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--work", type=int, default=WORK, help="candidates at work in a search")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one is not None:
        print(json.dumps(Measurement(asked).of(asked.one)))
        return
    asked.indexes.mkdir(parents=True, exist_ok=True)
    print(f"{machine()}\n{asked.vectors} vectors, {asked.queries} queries, {asked.work} at work\n")
    print("| index | bytes | in memory | built in | recall@10 | after 768 | search | in two |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    rows = {}
    for name in asked.only:
        row = rows[name] = in_own_process(*sys.argv[1:], "--one", name)
        print(
            f"| {name} | {row['disk_bytes']:.0f} | {row['memory_bytes']:.0f} "
            f"| {row['build_cpu_s']:.0f} s | {row['recall']:.3f} ({row['recall_exact']:.3f}) "
            f"| {row['recall_two_steps']:.3f} ({row['recall_two_steps_exact']:.3f}) "
            f"| {row['ms']:.1f} ms | {row['ms_two_steps']:.1f} ms |",
            flush=True,
        )
    save(f"hnsw-{asked.vectors}-{asked.work}", {"rows": rows})


if __name__ == "__main__":
    main()
