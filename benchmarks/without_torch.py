"""In process: OnnxRuntime's precisions against HuggingFaceEmbeddings, on the full-size checkpoint.

Every engine gets the same texts with the document prompt and reads the same tokens; they are timed
in turn in one process.

Run: PYTHONPATH=tests python benchmarks/without_torch.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import full_size
import numpy as np
from local import PROMPT, QUERY, mixed_texts, theirs
from pairs import disturbed, in_own_process, in_turn, machine, ratio, save, spread

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime

PRECISIONS = ("float32", "int8", "int4")
PEER = "HuggingFaceEmbeddings"


def compare(folder: Path, texts: list[str], rounds: int) -> dict[str, Any]:
    """Compare vectors, then time all engines."""
    embedders = {name: Embedder(OnnxRuntime(folder, precision=name)) for name in PRECISIONS}
    prompted = [PROMPT + text for text in texts]
    peer = theirs(folder, "float32")
    tokens = sum(embedders["int8"].runtime.count_tokens(prompted))
    exact = peer._client.encode(prompted, batch_size=4, normalize_embeddings=True)
    cosines = {
        name: (embedder.embed_documents(texts) * exact).sum(1)
        for name, embedder in embedders.items()
    }
    documents = in_turn(
        {PEER: lambda: peer.embed_documents(prompted)}
        | {
            name: lambda embedder=embedder: embedder.embed_documents(texts)
            for name, embedder in embedders.items()
        },
        rounds,
    )
    question = "how long does the dough rest before it is baked"
    queries = in_turn(
        {PEER: lambda: peer.embed_query(QUERY + question)}
        | {
            name: lambda embedder=embedder: embedder.embed_query(question)
            for name, embedder in embedders.items()
        },
        rounds * 6,
    )
    return {
        "texts": len(texts),
        "tokens": tokens,
        "seconds": documents,
        "query_seconds": queries,
        "cosine": {name: [float(c.min()), float(np.mean(c))] for name, c in cosines.items()},
        "others": max(disturbed),
    }


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    print(
        f"{machine()}\n{found['texts']} texts, {found['tokens']} tokens with prompts; other "
        f"processes took {found['others']:.0%} of the processors\n"
    )
    print(
        "| | documents | times faster | one query | times faster | cosine, least and mean | load |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    documents, queries = found["seconds"], found["query_seconds"]
    for name in documents:
        speeds = spread([found["tokens"] / time for time in documents[name]], "tokens/s", 0)
        latency = spread([time * 1000 for time in queries[name]], "ms")
        cosine = " and ".join(f"{value:.5f}" for value in found["cosine"].get(name, ()))
        loading = found["load"].get(name)
        print(
            f"| {name} | {speeds} | {ratio(documents[PEER], documents[name])} | {latency} | "
            f"{ratio(queries[PEER], queries[name])} | {cosine} | "
            f"{f'{min(loading):.2f} s' if loading else ''} |"
        )


def load(folder: Path, precision: Any) -> None:
    """Load one runtime in this process, and print the seconds until it can count tokens."""
    start = time.perf_counter()
    OnnxRuntime(folder, precision=precision).count_tokens(["a"])
    print(json.dumps(time.perf_counter() - start))


def main() -> None:
    """Print and save one comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".full-size"))
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--words", type=int, default=25, help="median length of a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--load", choices=PRECISIONS)
    options = parser.parse_args()
    folder = full_size.build(options.checkpoint)
    if options.load:
        load(folder, options.load)
        return
    texts = mixed_texts(options.texts, seed=0, words=options.words)
    found = compare(folder, texts, options.rounds)
    shared = ("--checkpoint", str(folder), "--load")
    found["load"] = {name: [in_own_process(*shared, name) for _ in range(3)] for name in PRECISIONS}
    show(found)
    save("without-torch" + ("" if options.words == 25 else "-long"), found)


if __name__ == "__main__":
    main()
