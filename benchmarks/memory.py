"""Peak resident memory of a process: import, load, and embed 100 mixed texts.

Each engine runs in a fresh process on the full-size checkpoint; numbers are MB (10^6 bytes) of
VmHWM, which includes pages of files, after each stage. Files that processes share (a graph, a
tokenizer) are cached already; the process that creates them takes more.

Run: PYTHONPATH=tests python benchmarks/memory.py
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Only the parent imports what it needs alone: the measured process must not count the benchmark's
# own memory.
if TYPE_CHECKING:
    from collections.abc import Callable

ENGINES = (
    "OnnxRuntime int4",
    "OnnxRuntime int8",
    "OnnxRuntime float32",
    "TransformersRuntime float32",
    "TransformersRuntime bfloat16",
    "HuggingFaceEmbeddings",
    "sentence-transformers bfloat16",
)
QUESTION = "how long does the dough rest before it is baked"


def texts() -> list[str]:
    """100 texts of the example notes, 4 to 160 words."""
    notes = sorted((Path(__file__).parent.parent / "examples" / "notes").glob("*.md"))
    words = " ".join(path.read_text() for path in notes).split()
    # Not random: the library of random numbers takes megabytes itself.
    lengths = [4 + (i * 37) % 53 + (107 if i % 9 == 0 else 0) for i in range(100)]
    starts = [(i * 7919) % (len(words) - 200) for i in range(100)]
    return [" ".join(words[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def engine(name: str, folder: str) -> Callable[[list[str]], Any]:
    """Import and construct an engine; it may load at the first text."""
    kind, _, precision = name.partition(" ")
    if kind.endswith("Runtime"):
        from gemma_embed import Embedder, runtimes

        option = "precision" if kind == "OnnxRuntime" else "dtype"
        return Embedder(getattr(runtimes, kind)(folder, **{option: precision})).embed_documents
    if kind == "HuggingFaceEmbeddings":
        from langchain_huggingface import HuggingFaceEmbeddings

        options = {"device": "cpu"}
        return HuggingFaceEmbeddings(model_name=folder, model_kwargs=options).embed_documents
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"dtype": getattr(torch, precision)}
    return SentenceTransformer(folder, device="cpu", model_kwargs=options).encode


def peak_memory() -> float:
    """Peak of this process's resident memory in MB (10^6 bytes), including pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def alone(name: str, folder: str) -> None:
    """Run one engine in this process, and print its peak after each stage."""
    start = time.perf_counter()
    stages = {"Python": peak_memory()}
    if name.startswith("OnnxRuntime"):
        import numpy  # noqa: F401

        stages["NumPy"] = peak_memory()
        import gemma_embed.runtimes  # noqa: F401

        stages["gemma_embed"] = peak_memory()
        import onnxruntime  # noqa: F401

        stages["onnxruntime"] = peak_memory()
    embed = engine(name, folder)
    embed([QUESTION])
    stages["load, one query"] = peak_memory()
    ready = time.perf_counter() - start
    embed(texts())
    stages["100 texts"] = peak_memory()
    print(json.dumps({"stages": stages, "ready": ready}))


def main() -> None:
    """Print and save one table."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    if sys.argv[1:2] == ["--alone"]:
        alone(*sys.argv[2:])
        return
    import argparse

    import full_size
    from pairs import in_own_process, machine, save

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".full-size"))
    parser.add_argument("--engines", nargs="+", default=ENGINES)
    options = parser.parse_args()
    folder = str(full_size.build(options.checkpoint))
    for name in options.engines:
        if name.startswith("OnnxRuntime"):
            # Fills the cache.
            in_own_process("--alone", name, folder)
    found = {name: in_own_process("--alone", name, folder) for name in options.engines}
    print(f"{machine()}\n\n| | peak | after each stage | ready |\n| --- | --- | --- | --- |")
    for name, one in found.items():
        stages = ", ".join(f"{stage} {peak:.0f}" for stage, peak in one["stages"].items())
        peak = one["stages"]["100 texts"]
        print(f"| {name} | {peak:.0f} MB | {stages} | {one['ready']:.1f} s |")
    save("memory", found)


if __name__ == "__main__":
    main()
