"""In process: ours, HuggingFaceEmbeddings and sentence-transformers on the full-size checkpoint.

Every engine gets the same texts with the document prompt, reads the same tokens and must return the
same vectors; they are timed in turn in one process. The limit is the time that the processor's
fastest matrix product of this size would take for the model's arithmetic.

Run: PYTHONPATH=tests python benchmarks/local.py --dtype float32
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
warnings.filterwarnings("ignore")

import checkpoints  # noqa: E402
import full_size  # noqa: E402
import numpy as np  # noqa: E402
from pairs import (  # noqa: E402
    disturbed,
    in_own_process,
    in_turn,
    machine,
    peak_memory,
    ratio,
    save,
    seconds,
    spread,
)

PROMPT = "title: none | text: "
QUERY = "task: search result | query: "
BATCH_SIZES = (1, 4, 8, 16, 32)

Embed = Callable[[list[str]], np.ndarray]


def mixed_texts(count: int, seed: int, words: int = 25) -> list[str]:
    """Texts of the example notes with log-normal lengths around so many words, at least 4."""
    notes = sorted(checkpoints.NOTES.glob("*.md"))
    all_words = " ".join(path.read_text() for path in notes).split()
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(words), 0.9, count).astype(int), 4, 6.4 * words)
    starts = random.integers(0, len(all_words) - 12 * words, count)
    return [
        " ".join(all_words[start : start + int(length)])
        for start, length in zip(starts, lengths, strict=True)
    ]


def ours(folder: Path, dtype: Any) -> tuple[Embed, Callable[[list[str]], list[int]]]:
    """Return ``embed_documents`` and a function that counts tokens."""
    from gemma_embed.runtimes import TransformersRuntime
    from langchain_gemma_embed import GemmaEmbeddings

    runtime = TransformersRuntime(folder, device="cpu", dtype=dtype)
    embeddings = GemmaEmbeddings(runtime)

    def embed(texts: list[str]) -> np.ndarray:
        if len(texts) == 1 and texts[0].startswith(QUERY):
            return np.array([embeddings.embed_query(texts[0].removeprefix(QUERY))])
        return np.array(embeddings.embed_documents([text.removeprefix(PROMPT) for text in texts]))

    return embed, runtime.count_tokens


def theirs(folder: Path, dtype: str) -> Any:
    """Return ``HuggingFaceEmbeddings`` with its defaults except for the dtype."""
    import torch
    from langchain_huggingface import HuggingFaceEmbeddings

    options = {"device": "cpu", "model_kwargs": {"dtype": getattr(torch, dtype)}}
    return HuggingFaceEmbeddings(model_name=str(folder), model_kwargs=options)


def flops_of(lengths: list[int]) -> float:
    """FLOPs of the model for texts of these lengths: linear layers and full attention."""
    shape = full_size.FULL_SIZE
    heads = shape.heads * shape.head_dim
    linear = shape.hidden * (2 * heads + 2 * shape.head_dim + 3 * shape.intermediate)
    return sum(shape.layers * (2 * linear * n + 4 * heads * n * n) for n in lengths)


# Rows, inner and outer size of the model's widest product, and its repetitions.
_ROWS, _INNER, _OUTER, _TIMES = 1024, 768, 2304, 20
PRODUCT = 2.0 * _ROWS * _INNER * _OUTER * _TIMES


def products(dtype: str) -> dict[str, Callable[[], object]]:
    """Return matrix products of this model's size, in torch's and in oneDNN's layout."""
    import torch
    from torch.nn.functional import linear as plain

    from gemma_fast.linear import linear

    kind = getattr(torch, dtype)
    left, right = torch.randn(_ROWS, _INNER, dtype=kind), torch.randn(_OUTER, _INNER, dtype=kind)
    reordered = linear(right)

    def repeat(product: Callable[[Any], object]) -> None:
        with torch.inference_mode():
            for _ in range(_TIMES):
                product(left)

    return {
        "torch": lambda: repeat(lambda rows: plain(rows, right)),
        "oneDNN": lambda: repeat(reordered),
    }


def best_batch_size(model: Any, texts: list[str]) -> tuple[int, dict[int, float]]:
    """Try sentence-transformers' batch sizes, each once after a warm-up."""
    model.encode(texts[:2])
    times = {
        size: seconds(lambda size=size: model.encode(texts, batch_size=size))
        for size in BATCH_SIZES
        if size <= len(texts)
    }
    return min(times, key=times.__getitem__), times


def compare(folder: Path, dtype: str, texts: list[str], rounds: int) -> dict[str, Any]:
    """Check that the vectors are equal, then time all engines."""
    prompted = [PROMPT + text for text in texts]
    embed, count = ours(folder, dtype)
    lengths = count(prompted)
    tokens = sum(lengths)
    peer = theirs(folder, dtype)
    model = peer._client
    size, tried = best_batch_size(model, prompted)
    names = {
        "HuggingFaceEmbeddings": lambda: peer.embed_documents(prompted),
        "sentence-transformers": lambda: model.encode(prompted, batch_size=size),
        "gemma-embed": lambda: embed(prompted),
    }
    if dtype != "float32":
        del names["HuggingFaceEmbeddings"]
    cosines = (embed(prompted) * model.encode(prompted, batch_size=size)).sum(1)
    documents = in_turn(products(dtype) | names, rounds)
    pairs = zip(documents.pop("torch"), documents.pop("oneDNN"), strict=True)
    limits = [PRODUCT / min(pair) for pair in pairs]
    question = [QUERY + "how long does the dough rest before it is baked"]
    queries = in_turn(
        {
            "sentence-transformers": lambda: model.encode(question),
            "gemma-embed": lambda: embed(question),
        },
        rounds * 4 if dtype == "float32" else rounds,
    )
    flops = flops_of(lengths)
    return {
        "dtype": dtype,
        "texts": len(texts),
        "tokens": tokens,
        "longest": max(lengths),
        "cosine": float(cosines.min()),
        "batch_size": size,
        "batch_sizes_tried": tried,
        "seconds": documents,
        "query_seconds": queries,
        "limit": statistics.median(limits),
        "of_limit": {
            name: statistics.median(
                flops / time / limit for time, limit in zip(times, limits, strict=True)
            )
            for name, times in documents.items()
        },
        "others": max(disturbed),
    }


def show(found: dict[str, Any]) -> None:
    """Print one table."""
    print(
        f"{machine()}\n{found['dtype']}, {found['texts']} texts, {found['tokens']} tokens with "
        f"prompts, the longest {found['longest']}; cosine of ours to sentence-transformers' "
        f">= {found['cosine']:.7f}\nlimit {found['limit'] / 1e9:.0f} GFLOP/s; other processes took "
        f"{found['others']:.0%} of the processors; sentence-transformers at batch size "
        f"{found['batch_size']}, its best\n"
    )
    print(
        "| | documents, tokens/s | of the limit | ours, times faster |\n| --- | --- | --- | --- |"
    )
    best = found["seconds"]["gemma-embed"]
    for name, times in found["seconds"].items():
        speeds = [found["tokens"] / time for time in times]
        share = f"{found['of_limit'][name]:.0%}"
        print(f"| {name} | {spread(speeds, 'tokens/s', 0)} | {share} | {ratio(times, best)} |")
    print("\n| | one query | ours, times faster |\n| --- | --- | --- |")
    for name, times in found["query_seconds"].items():
        latency = [time * 1000 for time in times]
        pairs = ratio(times, found["query_seconds"]["gemma-embed"])
        print(f"| {name} | {spread(latency, 'ms')} | {pairs} |")
    for name, peak in found["memory"].items():
        print(f"{name}: peak {peak['megabytes']:.0f} MB, ready in {peak['ready']:.1f} s")


def alone(folder: Path, dtype: str, engine: str) -> None:
    """Load one engine in this process, embed a few texts, and print memory and time."""
    start = time.perf_counter()
    if engine == "gemma-embed":
        embed, _ = ours(folder, dtype)
    else:
        embed = theirs(folder, dtype).embed_documents
    embed([QUERY + "how long does the dough rest"])
    ready = time.perf_counter() - start
    embed([PROMPT + text for text in mixed_texts(8, seed=0)])
    print(json.dumps({"megabytes": peak_memory(), "ready": ready}))


def main() -> None:
    """Print and save one comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".full-size"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--words", type=int, default=25, help="median length of a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", choices=("gemma-embed", "HuggingFaceEmbeddings"))
    options = parser.parse_args()
    folder = full_size.build(options.checkpoint)
    if options.alone:
        alone(folder, options.dtype, options.alone)
        return
    shared = ("--checkpoint", str(folder), "--dtype", options.dtype)
    memory = {
        name: in_own_process(*shared, "--alone", name)
        for name in ("HuggingFaceEmbeddings", "gemma-embed")
    }
    texts = mixed_texts(options.texts, seed=0, words=options.words)
    found = compare(folder, options.dtype, texts, options.rounds) | {"memory": memory}
    show(found)
    save(f"local-{options.dtype}" + ("" if options.words == 25 else "-long"), found)


if __name__ == "__main__":
    main()
