"""What each precision of OnnxRuntime costs: closeness to float32, recall, size, speed, memory.

Cosines are over the texts of ``corpus.py``, recall@1 over the committed retrieval sets. Speed is
measured in turn in one process; memory (VmHWM, pages of files included) in a process of its own,
after 100 short texts and then after one that fills the model's context.

Run: PYTHONPATH=tests python benchmarks/precision.py --model FOLDER --corpus FILE
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The measured process must not count what the parent alone needs.
if TYPE_CHECKING:
    import numpy as np

PRECISIONS = ("float32", "int8", "int4")
SETS = Path(__file__).parent.parent / "training" / "evaluation"
# Texts that are timed, with those of the corpus in between left out.
TIMED = 24


def embedder(model: str, precision: str) -> Any:
    """Construct one engine; it loads at the first text."""
    from gemma_embed import Embedder
    from gemma_embed.runtimes import OnnxRuntime

    return Embedder(OnnxRuntime(model, precision=precision), overlong="truncate")


def recall(engine: Any, name: str) -> float:
    """Share of a set's questions whose first hit is a right passage."""
    data = json.loads((SETS / f"{name}.json").read_text())
    names = [passage["id"] for passage in data["passages"]]
    titles = [passage["title"] for passage in data["passages"]]
    passages = engine.embed_documents([one["text"] for one in data["passages"]], titles=titles)
    questions = engine.embed([one["text"] for one in data["queries"]], "query")
    first = (questions @ passages.T).argmax(1)
    right = [names[hit] in one["relevant"] for hit, one in zip(first, data["queries"], strict=True)]
    return sum(right) / len(right)


def closeness(exact: np.ndarray, close: np.ndarray) -> dict[str, float]:
    """Mean, hundredth part and minimum of the cosines."""
    import numpy as np

    cosines = (exact * close).sum(1)
    return {
        "mean": float(cosines.mean()),
        "hundredth": float(np.quantile(cosines, 0.01)),
        "worst": float(cosines.min()),
    }


def alone(model: str, precision: str) -> None:
    """Embed in this process, and print its peak after each stage."""
    import memory

    engine = embedder(model, precision)
    short = memory.texts()
    engine.embed_documents(short)
    stages = {"100 texts": memory.peak_memory()}
    engine.embed_documents([" ".join(short * 2)])
    stages["2,048 tokens"] = memory.peak_memory()
    print(json.dumps(stages))


def written(model: str, precision: str) -> float:
    """Megabytes (10^6 bytes) of a model's graph and numbers, in a cache of their own."""
    import tempfile

    from gemma_embed.runtimes import OnnxRuntime

    with tempfile.TemporaryDirectory() as place:
        OnnxRuntime(model, precision=precision, cache_dir=place).count_tokens(["a"])
        return sum(file.stat().st_size for file in Path(place).glob("*/model.*")) / 1e6


def main() -> None:
    """Print and save one table."""
    if sys.argv[1:2] == ["--alone"]:
        alone(*sys.argv[2:])
        return
    import argparse

    from pairs import disturbed, in_own_process, in_turn, machine, ratio, save

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("GEMMA_EMBED_WEIGHTS", "bundled"))
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in options.corpus.read_text().splitlines()]
    engines = {name: embedder(options.model, name) for name in PRECISIONS}
    exact = engines["float32"].embed_documents(texts)
    found: dict[str, Any] = {}
    for name, engine in engines.items():
        vectors = exact if name == "float32" else engine.embed_documents(texts)
        found[name] = {
            "cosine": closeness(exact, vectors),
            "recall@1": {one: recall(engine, one) for one in ("everyday", "technical")},
            "megabytes": written(options.model, name),
            "memory": in_own_process("--alone", options.model, name),
        }
    timed = [text[:600] for text in texts[:: len(texts) // TIMED]]
    seconds = in_turn(
        {name: lambda e=engine: e.embed_documents(timed) for name, engine in engines.items()},
        options.rounds,
    )
    print(f"{machine()}; {len(texts)} texts; others took {max(disturbed):.0%} of the processors\n")
    print("| | cosine, mean | 1 in 100 | worst | recall@1 | files | times float32 | memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, one in found.items():
        one["seconds"] = seconds[name]
        cosines = " | ".join(f"{value:.4f}" for value in one["cosine"].values())
        hits = ", ".join(f"{value:.3f}" for value in one["recall@1"].values())
        peak = ", ".join(f"{value:.0f} MB" for value in one["memory"].values())
        speed = ratio(seconds["float32"], seconds[name])
        print(f"| {name} | {cosines} | {hits} | {one['megabytes']:.0f} MB | {speed} | {peak} |")
    save("precision", {"texts": len(texts), "others": max(disturbed), "found": found})


if __name__ == "__main__":
    main()
