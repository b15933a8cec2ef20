"""Private search: what it finds on the questions over its sample, and when it says "not there".

PYTHONPATH=examples python benchmarks/search_quality.py                    the bundled model
PYTHONPATH=examples python benchmarks/search_quality.py --model FOLDER     real weights, int8
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np

from gemma_embed.runtimes import OnnxRuntime, Runtime
from gemma_embed.vectors import Vectors
from private_search.__main__ import SAMPLE, sample
from private_search.abstention import calibrated
from private_search.catalogue import Filter
from private_search.library import Library
from private_search.search import Mode, Search

QUESTIONS: list[dict[str, Any]] = json.loads((SAMPLE / "questions.json").read_text("utf-8"))
ANSWERED = [row for row in QUESTIONS if row["in"]]
STORE = "chroma.embeddings.sqlite"


def is_right(row: dict[str, Any], document: str) -> bool:
    """Whether a document is the one that a question is about."""
    return row["in"] in document.rpartition("/sample/")[2]


def figures(search: Search, rows: list[dict[str, Any]], queries: Vectors, mode: Mode) -> str:
    """Return recall@1, recall@5 and nDCG@10 of documents."""
    scores = []
    for row, query in zip(rows, queries, strict=True):
        passages = search.ranked(row["question"], query, Filter(), mode).passages
        right = [is_right(row, name) for name in dict.fromkeys(each.document for each in passages)]
        best = right.index(True) if any(right) else 99
        scores.append((best < 1, best < 5, 1 / math.log2(best + 2) if best < 10 else 0.0))
    return ", ".join(f"{score:.3f}" for score in np.mean(scores, axis=0))


def found(search: Search, *, kinds: bool) -> None:
    """Print what each way of searching finds."""
    queries = search.queries([row["question"] for row in ANSWERED])
    for mode in get_args(Mode):
        print(f"  {mode}: {figures(search, ANSWERED, queries, mode)}")
    for kind in sorted({row["kind"] for row in ANSWERED}) if kinds else ():
        chosen = [place for place, row in enumerate(ANSWERED) if row["kind"] == kind]
        rows = [ANSWERED[place] for place in chosen]
        print(f"  hybrid, {kind} ({len(rows)}): {figures(search, rows, queries[chosen], 'hybrid')}")


def sentences(search: Search) -> None:
    """Print how often the sentences shown hold the answer."""
    rows = [row for row in ANSWERED if "answer" in row]
    there = shown = 0
    for row in rows:
        hits = [
            hit for hit in search.ask(row["question"]).hits if is_right(row, hit.found.document)
        ]
        there += bool(hits)
        parts = [part for hit in hits for part in hit.sentences]
        shown += any(answer in part for answer in row["answer"] for part in parts)
    print(f"  sentences with the answer: {shown} of {len(rows)}, its document found for {there}")


def abstention(search: Search) -> None:
    """Print false answers and false refusals by threshold."""
    calibration, confidence = calibrated(search), []
    for row, query in zip(
        QUESTIONS, search.queries([row["question"] for row in QUESTIONS]), strict=True
    ):
        ranking = search.ranked(row["question"], query, Filter())
        confidence.append(calibration.confidence(ranking))
    judged = np.array(confidence)
    answered = np.array([bool(row["in"]) for row in QUESTIONS])
    for needed in (0.5, 0.7, 0.8, 0.85, 0.9, 0.95):
        wrong, refused = (judged[~answered] >= needed).mean(), (judged[answered] < needed).mean()
        print(f"  better than {needed:.2f}: false answers {wrong:.3f}, refusals {refused:.3f}")


def main() -> None:
    """Print all of it, at several widths of the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="folder of weights; the bundled model without it")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[768, 256, 128])
    options = parser.parse_args()
    runtime: Runtime = (
        OnnxRuntime(options.model, precision="int8") if options.model else OnnxRuntime("bundled")
    )
    with tempfile.TemporaryDirectory() as temporary:
        full = Path(temporary) / "full"
        for dimensions in (None, *options.dimensions):
            if dimensions is not None and dimensions >= runtime.model.width:
                continue
            folder = full if dimensions is None else Path(temporary) / str(dimensions)
            if dimensions is not None:
                # Vectors that the full width needed are not computed again.
                folder.mkdir()
                shutil.copy(full / STORE, folder)
            with Library(folder, runtime, dimensions=dimensions) as library:
                library.add(*sample())
                library.update()
                search = Search(library)
                print(f"index of {library.embedder.dimensions} numbers")
                found(search, kinds=dimensions is None)
                if dimensions is None:
                    sentences(search)
                    abstention(search)


if __name__ == "__main__":
    main()
