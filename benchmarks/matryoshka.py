"""Small indexes and search in two steps against exact search at full width, on Chroma.

Three sets of vectors. ``documentation``, with ``--real``: real sentences and the real weights, as
``documentation.py`` writes them. ``synthetic``: normal numbers whose variance falls with their
position by a power law, so that the first ones carry most information, as Matryoshka training does;
queries are noisy documents. ``docstrings``: paragraphs of the docstrings of the installed packages,
embedded by the bundled model; queries are first sentences of paragraphs that are not in the index.

    python benchmarks/matryoshka.py --vectors 50000 --queries 500
    python benchmarks/matryoshka.py --real FOLDER
    python benchmarks/matryoshka.py --real FOLDER --packed 1000000

Prints and saves a table for each set: recall@10 against exact search at full width, for exact
search of the cut vectors, for Chroma and for packed vectors; bytes on disk, or of a packed vector;
the median time of a search by a LangChain retriever, with a look-up instead of the model.
``--packed`` instead searches vectors in memory, in 32, 8 and 1 bits a number: the real ones, then
as many as given that have their mean and covariance.
"""

from __future__ import annotations

import argparse
import ast
import json
import site
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import packed
from langchain_chroma import Chroma
from langchain_core.retrievers import BaseRetriever
from packed import recall
from pairs import machine, save

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, CompactIndex
from gemma_embed.compact import Form
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M, Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes import Batch, Runtime, TooLong, TransformersRuntime
from gemma_embed.vectors import Vectors, cut
from langchain_gemma_embed import GemmaEmbeddings, MatryoshkaRetriever

LIMIT, CANDIDATES = packed.LIMIT, packed.CANDIDATES
FORMS: tuple[Form, ...] = ("int8", "binary")
# Variance of number i of a vector: (i + 1) ** -DECAY.
DECAY = 0.8
NOISE = 0.7
SHORTEST, LONGEST = 40, 400


class Table(Runtime):
    """A runtime that looks vectors up, so that only searches are timed."""

    def __init__(self, texts: Sequence[str], vectors: Vectors) -> None:
        self._rows = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    model: Model = EMBEDDINGGEMMA_300M
    prompts: Prompts = EMBEDDINGGEMMA_300M.prompts
    settings: ClassVar[dict[str, Any]] = {}
    identity = Identity(EMBEDDINGGEMMA_300M.name, "table", "1", "table", "float32", 2048)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Yield all vectors at once. The passport's sentence gets the vector of row 0."""
        del truncate
        bare = [text.split(": ", 2)[2] for text in texts]
        rows = [self._rows.get(text, 0) for text in bare]
        yield Batch(range(len(texts)), self._vectors[rows])


Set = tuple[Table, list[str], list[str]]


def synthetic(count: int, queries: int, seed: int) -> Set:
    """Make vectors; the last ones belong to the queries."""
    draw = np.random.default_rng(seed)
    width = EMBEDDINGGEMMA_300M.width
    scale = np.arange(1, width + 1, dtype=np.float32) ** (-DECAY / 2)
    vectors = draw.standard_normal((count + queries, width), np.float32) * scale
    asked = draw.choice(count, queries, replace=False)
    vectors[count:] = vectors[asked] + NOISE * vectors[count:]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [f"row {row}" for row in range(count + queries)]
    return Table(rows, vectors), rows[:count], rows[count:]


def docstrings(count: int, queries: int, seed: int) -> Set:
    """Embed distinct paragraphs, in an order that the seed decides.

    Raises:
        SystemExit: If the installed packages have too few.
    """
    found = sorted(set(paragraphs()))
    if len(found) < count + queries:
        raise SystemExit(f"{len(found)} paragraphs in total; choose fewer --vectors")
    order = np.random.default_rng(seed).permutation(len(found))
    texts = [found[place] for place in order[: count + queries]]
    known = set(texts[:count])
    # A question that is also a document would get the document's vector.
    questions = [text.split(". ")[0] for text in texts[count:]]
    questions = [question for question in questions if question not in known]
    embedder = Embedder(TransformersRuntime("bundled"))
    vectors = [embedder.embed(texts[:count]), embedder.embed(questions, task="query")]
    return Table(texts[:count] + questions, np.concatenate(vectors)), texts[:count], questions


def documentation(folder: Path) -> Set:
    """Read what ``documentation.py`` wrote."""
    vectors = [np.load(folder / f"{name}.npy") for name in ("documents", "queries")]
    texts = json.loads((folder / "texts.json").read_text())
    count = len(vectors[1])
    return (
        Table(texts[count:] + texts[:count], np.concatenate(vectors)),
        texts[count:],
        texts[:count],
    )


def paragraphs() -> Iterator[str]:
    """Yield paragraphs of prose from the docstrings of the installed packages."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(Path(site.getsitepackages()[0]).rglob("*.py")):
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for paragraph in (text or "").split("\n\n"):
                plain = " ".join(paragraph.split())
                if SHORTEST <= len(plain) <= LONGEST and plain.isascii() and plain[0].isupper():
                    yield plain


def measure(runtime: Table, texts: list[str], questions: list[str]) -> dict[str, Any]:
    """Fill an index of each width, search each, and print the table; return its numbers."""
    found: dict[str, Any] = {}
    full_width = runtime.model.width
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = folder / "vectors.sqlite"
        full = GemmaEmbeddings(runtime, store=store).embedder
        documents = full.embed(texts)
        wanted = full.embed(questions, task="query")
        exact = packed.exact(documents, wanted)
        print("| index | recall@10, exact | recall@10, Chroma | vectors' files | folder | search |")
        print("| --- | --- | --- | --- | --- | --- |")
        for width in runtime.model.dimensions:
            embeddings = GemmaEmbeddings(runtime, dimensions=width, store=store)
            rows = ({"id": str(n), "text": text} for n, text in enumerate(texts))
            with ChromaIndex(folder / str(width), "notes", embeddings) as index:
                index.ingest(rows, batch_size=5000)
                narrow = cut(wanted, width)
                of_cut = recall(packed.exact(cut(documents, width), narrow).tolist(), exact)
                chroma = Chroma(index.collection_name, embeddings, client=index.client)
                direct = chroma.as_retriever(search_kwargs={"k": LIMIT})
                one = timed(direct, questions, exact)
                found[str(width)] = report(str(width), of_cut, one, folder / str(width))
                if width in packed.WIDTHS[1:]:
                    retriever = MatryoshkaRetriever(chroma, k=LIMIT, candidates=CANDIDATES)
                    two = timed(retriever, questions, exact)
                    steps = f"{width}, then {full_width}"
                    found[steps] = report(steps, None, two, folder / str(width))
                if width not in packed.WIDTHS:
                    continue
                for form in FORMS:
                    steps = f"{width} x {form}, then {full_width}"
                    found[steps] = compact(steps, index, form, chroma, questions, exact)
        found["store_mb"] = round(store.stat().st_size / 1e6)
        print(f"\nThe embedding store that all share: {found['store_mb']} MB\n")
    return found


def compact(
    name: str,
    index: ChromaIndex,
    form: Form,
    chroma: Chroma,
    questions: list[str],
    exact: np.ndarray,
) -> dict[str, float]:
    """Print the row of packed candidates, and return its numbers."""
    first = CompactIndex(index, form)
    began = time.perf_counter()
    rows = first.load()
    seconds = time.perf_counter() - began
    retriever = MatryoshkaRetriever(chroma, k=LIMIT, candidates=CANDIDATES, compact=first)
    found, search = timed(retriever, questions, exact)
    width = index.embedder.dimensions
    size = rows * (width if form == "int8" else width // 8) / 1e6
    print(
        f"| {name} | | {found:.3f} | {size:.0f} MB of codes, loaded in {seconds:.1f} s | "
        f"| {search * 1000:.1f} ms |",
        flush=True,
    )
    return {"recall": found, "memory_mb": size, "load_s": seconds, "search_ms": search * 1000}


def timed(
    retriever: BaseRetriever, questions: Sequence[str], exact: np.ndarray
) -> tuple[float, float]:
    """Search for every question: recall@10, and the median seconds of a search."""
    found, seconds = [], []
    for question in questions:
        began = time.perf_counter()
        documents = retriever.invoke(question)
        seconds.append(time.perf_counter() - began)
        found.append([int(document.id or "") for document in documents])
    return recall(found, exact), statistics.median(seconds)


def report(
    name: str, of_cut: float | None, measured: tuple[float, float], folder: Path
) -> dict[str, float | None]:
    """Print a row, and return its numbers."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    vectors = sum(path.stat().st_size for path in folder.glob("*/*")) / 1e6
    exact = "" if of_cut is None else f"{of_cut:.3f}"
    print(
        f"| {name} | {exact} | {measured[0]:.3f} | {vectors:.0f} MB | {total:.0f} MB "
        f"| {measured[1] * 1000:.1f} ms |",
        flush=True,
    )
    return {
        "recall_exact": of_cut,
        "recall_chroma": measured[0],
        "vectors_mb": vectors,
        "folder_mb": total,
        "search_ms": measured[1] * 1000,
    }


def search_real(folder: Path, count: int | None, seed: int) -> None:
    """Print and save the tables of the real vectors, on Chroma or in memory."""
    made = documentation(folder)
    print(f"{len(made[1])} real vectors, {len(made[2])} queries\n", flush=True)
    if count is None:
        save("matryoshka-real", measure(*made))
        return
    documents, queries = (np.load(folder / f"{name}.npy") for name in ("documents", "queries"))
    found = {"real": packed.measure(documents, queries)}
    for size in (len(documents), count):
        print(f"\n{size} vectors of the same mean and covariance\n", flush=True)
        vectors = packed.scaled(documents, size, seed)
        found[str(size)] = packed.measure(vectors, queries[:60])
        del vectors
    save("matryoshka-packed", found)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", choices=["synthetic", "docstrings"], help="only this set")
    parser.add_argument("--real", type=Path, help="only the set that documentation.py wrote here")
    parser.add_argument("--packed", type=int, help="search in memory, and so many made vectors")
    args = parser.parse_args()
    print(f"{machine()}\n{args.vectors} vectors, {args.queries} queries, seed {args.seed}\n")
    found: dict[str, Any] = {"vectors": args.vectors, "queries": args.queries, "seed": args.seed}
    if args.real is not None:
        search_real(args.real, args.packed, args.seed)
        return
    for make in (synthetic, docstrings):
        if args.set in (None, make.__name__):
            print(f"{make.__name__}\n", flush=True)
            found[make.__name__] = measure(*make(args.vectors, args.queries, args.seed))
    save("matryoshka", found)


if __name__ == "__main__":
    main()
