"""What precision, width, prompts and titles do to retrieval, on the sets that the project ships.

Three sets: short passages about everyday and technical matters whose questions share few words
with them, and the example notes. Vectors are computed once for each precision at full width; those
without prompts come from the runtime itself, which adds none. The hits of a question are sorted by
cosine.

Run: python benchmarks/quality.py --model FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pairs import machine, save

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime, Runtime, TransformersRuntime
from gemma_embed.vectors import cut

ROOT = Path(__file__).parent.parent
WIDTHS = (768, 512, 256, 128)
DEPTH = 10


@dataclass(frozen=True)
class Set:
    """Passages, questions, and the rows of the right passages of each question."""

    titles: list[str]
    texts: list[str]
    questions: list[str]
    right: list[set[int]]


def committed(name: str) -> Set:
    """Return one of the sets of ``training/evaluation``."""
    data = json.loads((ROOT / "training" / "evaluation" / f"{name}.json").read_text())
    rows = {passage["id"]: row for row, passage in enumerate(data["passages"])}
    return Set(
        [passage["title"] for passage in data["passages"]],
        [passage["text"] for passage in data["passages"]],
        [question["text"] for question in data["queries"]],
        [{rows[each] for each in question["relevant"]} for question in data["queries"]],
    )


def notes() -> Set:
    """Return the example notes, each a passage without its heading, which is its title."""
    names = sorted(path.name for path in (ROOT / "examples" / "notes").glob("*.md"))
    parts = [(ROOT / "examples" / "notes" / name).read_text().partition("\n") for name in names]
    questions = json.loads((ROOT / "examples" / "questions.json").read_text())["questions"]
    return Set(
        [heading.removeprefix("# ") for heading, _, _ in parts],
        [body.strip() for _, _, body in parts],
        [question["question"] for question in questions],
        [{names.index(question["document"])} for question in questions],
    )


def scores(questions: np.ndarray, passages: np.ndarray, right: list[set[int]]) -> dict[str, float]:
    """Return recall@1, recall@5 and nDCG@10, means over the questions.

    Args:
        questions: float32, shape (questions, width), rows of norm 1.
        passages: float32, shape (passages, width), rows of norm 1.
        right: The rows of the right passages of each question.
    """
    order = np.argsort(-(questions @ passages.T), axis=1, kind="stable")[:, :DEPTH]
    hits = np.array([[row in one for row in rows] for rows, one in zip(order, right, strict=True)])
    counts = np.array([len(one) for one in right])
    gains = 1 / np.log2(np.arange(2, DEPTH + 2))
    best = np.array([gains[:count].sum() for count in counts])
    return {
        "recall@1": float(hits[:, 0].mean()),
        "recall@5": float((hits[:, :5].sum(1) / np.minimum(counts, 5)).mean()),
        "ndcg@10": float(((hits * gains).sum(1) / best).mean()),
    }


def without_prompts(runtime: Runtime, texts: list[str]) -> np.ndarray:
    """Return the vectors of the bare texts."""
    vectors = np.empty((len(texts), runtime.model.width), np.float32)
    for batch in runtime.embed(texts, truncate=True):
        vectors[batch.rows] = batch.vectors
    return vectors


def measured(runtime: Runtime, sets: Mapping[str, Set]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the scores of each set, by what was embedded and how wide."""
    embedder = Embedder(runtime, overlong="truncate")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, one in sets.items():
        questions = embedder.embed(one.questions, "query")
        titled = embedder.embed_documents(one.texts, titles=one.titles)
        # Without a place for a title, as the frameworks' own classes are used.
        joined = [f"{title}\n{text}" for title, text in zip(one.titles, one.texts, strict=True)]
        forms = {
            "prompts and titles": (questions, titled),
            "prompts, no titles": (questions, embedder.embed_documents(one.texts)),
            "no prompts, title in the text": (
                without_prompts(runtime, one.questions),
                without_prompts(runtime, joined),
            ),
        }
        found[name] = {
            f"{form}, {width}": scores(cut(asked, width), cut(passages, width), one.right)
            for form, (asked, passages) in forms.items()
            for width in WIDTHS
        }
    return found


def main() -> None:
    """Print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("GEMMA_EMBED_WEIGHTS", "bundled"))
    options = parser.parse_args()
    runtimes: dict[str, Runtime] = {
        "float32": OnnxRuntime(options.model),
        "bfloat16": TransformersRuntime(options.model, device="cpu", dtype="bfloat16"),
        "int8": OnnxRuntime(options.model, precision="int8"),
        "int4": OnnxRuntime(options.model, precision="int4"),
    }
    sets = {"everyday": committed("everyday"), "technical": committed("technical")}
    sets["notes"] = notes()
    found = {}
    for precision, runtime in runtimes.items():
        found[precision] = measured(runtime, sets)
        for name, rows in found[precision].items():
            print(f"\n{precision}, {name} | recall@1 | recall@5 | nDCG@10")
            for row, values in rows.items():
                print(f"{row} | " + " | ".join(f"{value:.3f}" for value in values.values()))
    save("quality", {"machine": machine(), "scores": found})


if __name__ == "__main__":
    main()
