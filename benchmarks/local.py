"""In process: GemmaEmbeddings against HuggingFaceEmbeddings, same checkpoint, same texts, one run.

The checkpoint has EmbeddingGemma 300M's layers and sizes with random weights and a small
vocabulary: speed does not depend on the values, and an embedding look-up costs nothing.

Run: PYTHONPATH=tests python benchmarks/local.py
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import checkpoints  # noqa: E402
import numpy as np  # noqa: E402
from langchain_huggingface import HuggingFaceEmbeddings  # noqa: E402
from pairs import in_turn, machine, ratio, spread  # noqa: E402

from gemma_embed.runtimes import TransformersRuntime  # noqa: E402
from langchain_gemma_embed import GemmaEmbeddings  # noqa: E402

FULL_SIZE = checkpoints.Shape(768, 24, 3, 256, 1152, 3072, 4000)


def mixed_texts(count: int, seed: int) -> list[str]:
    """Texts of mixed lengths, log-normal round 25 words, from the example notes."""
    notes = sorted(checkpoints.NOTES.glob("*.md"))
    words = " ".join(path.read_text() for path in notes).split()
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(np.log(25), 0.9, count).astype(int), 4, 160)
    starts = random.integers(0, len(words) - 300, count)
    return [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = checkpoints.build(Path(name), FULL_SIZE, scale=0.02)
        compare(folder, mixed_texts(options.texts, seed=0), options.rounds)


def compare(folder: Path, texts: list[str], rounds: int) -> None:
    """Check that the vectors are the same, then time both."""
    runtime = TransformersRuntime(folder, device="cpu")
    ours = GemmaEmbeddings(runtime)
    theirs = HuggingFaceEmbeddings(model_name=str(folder), model_kwargs={"device": "cpu"})
    # What a user would have to know to write; timed below are the defaults.
    right = {"prompt_name": "document", "normalize_embeddings": True}
    prompted = theirs.model_copy(update={"encode_kwargs": right})
    same = texts[:8]
    plain = [text.replace("\n", " ") for text in same]
    a, b = np.array(ours.embed_documents(plain)), np.array(prompted.embed_documents(plain))
    bare = np.array(theirs.embed_documents(plain))
    tokens = sum(runtime.count_tokens(texts))

    documents = in_turn(
        {
            "HuggingFaceEmbeddings": lambda: theirs.embed_documents(texts),
            "GemmaEmbeddings": lambda: ours.embed_documents(texts),
        },
        rounds,
    )
    queries = in_turn(
        {
            "HuggingFaceEmbeddings": lambda: theirs.embed_query("how long does the dough rest"),
            "GemmaEmbeddings": lambda: ours.embed_query("how long does the dough rest"),
        },
        rounds * 4,
    )
    print(f"{machine()}\n{len(texts)} texts, {tokens} tokens without prompts, {rounds} rounds\n")
    print(
        f"Vectors, both with the document prompt: cosine >= {(a * b).sum(1).min():.7f}, "
        f"largest difference {np.abs(a - b).max():.1e}"
    )
    print(f"Vectors, HuggingFaceEmbeddings by default: cosine >= {(a * bare).sum(1).min():.3f}\n")
    print("| fp32 | documents, tokens/s | query |\n| --- | --- | --- |")
    for name, times in documents.items():
        speeds = [tokens / time for time in times]
        latency = [time * 1000 for time in queries[name]]
        print(f"| {name} | {spread(speeds, 'tokens/s', 0)} | {spread(latency, 'ms')} |")
    print(f"| times faster | {ratio(*documents.values())} | {ratio(*queries.values())} |")


if __name__ == "__main__":
    main()
