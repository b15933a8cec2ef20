"""Thresholds for redundancy filters, and the task for semantic chunking, measured.

Run: python benchmarks/similarity.py --model /path/to/embeddinggemma-300m
"""

from __future__ import annotations

import argparse
import json
import re
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

SETS = Path(__file__).parent.parent / "training" / "evaluation"
TASKS = ("sentence similarity", "clustering", "document")
SENTENCES = r"(?<=[.?!])\s+"


def cosines(embedder: Embedder, task: str, pairs: list[dict[str, str]]) -> NDArray[np.float32]:
    """Cosine of each pair, both sides under one task."""
    left, right = (embedder.embed([pair[side] for pair in pairs], task) for side in "ab")
    return np.sum(left * right, axis=1)


def report_pairs(embedder: Embedder) -> None:
    """Print cosines by how much a pair has in common, and what thresholds do."""
    pairs = json.loads((SETS / "pairs.json").read_text())["pairs"]
    scores = np.array([pair["score"] for pair in pairs])
    for task in TASKS:
        found = cosines(embedder, task, pairs)
        print(f"\n{task}: cosine, lowest, median, highest")
        for score in sorted(set(scores)):
            low, middle, high = np.percentile(found[scores == score], [0, 50, 100])
            print(f"  pairs that have {score:.1f} in common: {low:.2f} {middle:.2f} {high:.2f}")
        for threshold in (0.8, 0.85, 0.9, 0.95):
            over = [int(np.sum(found[scores == score] > threshold)) for score in (1.0, 0.8, 0.6)]
            over.append(int(np.sum(found[scores < 0.5] > threshold)))
            print(f"  above {threshold}: of 22 each 1.0, 0.8, 0.6 and of 66 others: {over}")


def documents(count: int = 10, size: int = 8) -> list[list[str]]:
    """Documents of passages that have nothing to do with each other."""
    passages = json.loads((SETS / "everyday.json").read_text())["passages"]
    order = np.random.default_rng(1).permutation(len(passages))
    rows = order[: count * size].reshape(count, size)
    return [[passages[row]["text"] for row in each] for each in rows]


def borders(chunks: list[str]) -> set[int]:
    """After which sentence of the document a chunk ends, the last one left out."""
    counts = np.cumsum([len(re.split(SENTENCES, chunk.strip())) for chunk in chunks])
    return set(counts[:-1].tolist())


def cut_by_langchain(
    runtime: OnnxRuntime, task: str, buffer: int, text: str, share: int
) -> list[str]:
    """Cut a text at the distances above a percentile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from langchain_experimental.text_splitter import SemanticChunker
    embeddings = GemmaEmbeddings(runtime)
    chunker = SemanticChunker(
        embeddings if task == "document" else embeddings.for_task(task),
        buffer_size=buffer,
        breakpoint_threshold_amount=share,
    )
    return list(chunker.split_text(text))


def cut_by_llamaindex(
    runtime: OnnxRuntime, task: str, buffer: int, text: str, share: int
) -> list[str]:
    """Do the same with LlamaIndex's class."""
    from llama_index.core import Document
    from llama_index.core.node_parser import SemanticSplitterNodeParser

    embedding = GemmaEmbedding(runtime)
    parser = SemanticSplitterNodeParser(
        embed_model=embedding if task == "document" else embedding.for_task(task),
        buffer_size=buffer,
        breakpoint_percentile_threshold=share,
        # It joins sentences as they are, so that each keeps the blank after it.
        sentence_splitter=lambda whole: re.split(r"(?<=[.?!]\s)", whole),
    )
    return [node.get_content() for node in parser.get_nodes_from_documents([Document(text=text)])]


def report_chunks(runtime: OnnxRuntime) -> None:
    """Print how many of the passages' borders each class finds, with the right number of cuts."""
    print("\nShare of the borders between passages that is found, with about as many cuts")
    for cut in (cut_by_langchain, cut_by_llamaindex):
        for buffer in (0, 1):
            for task in TASKS:
                right = wanted = cuts = 0
                for passages in documents():
                    true = borders(passages)
                    sentences = sum(len(re.split(SENTENCES, each)) for each in passages)
                    share = round(100 * (1 - len(true) / (sentences - 1)))
                    found = borders(cut(runtime, task, buffer, " ".join(passages), share))
                    right += len(found & true)
                    wanted += len(true)
                    cuts += len(found)
                said = f"{right / wanted:.2f} of {wanted}, {cuts} cuts"
                print(f"  {cut.__name__}, buffer_size={buffer}, {task}: {said}", flush=True)


def main() -> None:
    """Print both reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", choices=["float32", "int8"], default="int8")
    options = parser.parse_args()
    runtime = OnnxRuntime(options.model, precision=options.precision)
    report_pairs(Embedder(runtime))
    report_chunks(runtime)


if __name__ == "__main__":
    main()
