"""Speed, memory and start of engines side by side, ours and what a user would otherwise pick.

Each engine is a process of its own that stays: all are timed in turn, so that drift of the machine
affects them equally, and memory is that of one engine. Peaks are VmHWM in MB of 10^6 bytes, pages
of files included; files that an engine writes once (a graph, a tokenizer) are there already. Every
engine reads the same texts with EmbeddingGemma's prompts.

Run: PYTHONPATH=tests python benchmarks/engines.py --model FOLDER
     PYTHONPATH=tests python benchmarks/engines.py --model FOLDER --lengths 16 64 256 512 1024 2048
     PYTHONPATH=tests python benchmarks/engines.py --model FOLDER --also NAME=FOLDER,PYTHON
The last adds an engine that needs files or packages of its own, such as a folder in which
sentence-transformers has exported its graph, and the Python of that environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Only the parent imports what it needs alone: a worker must not count the benchmark's own memory.
if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

HUGGING_FACE = "HuggingFaceEmbeddings"
REFERENCE = "sentence-transformers float32"
PEERS = (HUGGING_FACE, REFERENCE, "sentence-transformers bfloat16")
OURS = (
    "TransformersRuntime float32",
    "TransformersRuntime bfloat16",
    "OnnxRuntime float32",
    "OnnxRuntime int8",
    "OnnxRuntime int4",
)
QUESTION = "how long does the dough rest before it is baked"
PROMPTS = {"document": "title: none | text: ", "query": "task: search result | query: "}
# sentence-transformers' fastest batch size for these texts on two cores, of 1, 4, 8, 16 and 32.
BATCH = 4
NOTES = Path(__file__).parent.parent / "examples" / "notes"


def words() -> list[str]:
    """Return the words of the example notes, one note after the other."""
    return " ".join(path.read_text() for path in sorted(NOTES.glob("*.md"))).split()


def many_texts(count: int = 100) -> list[str]:
    """Return texts of the example notes, 4 to 160 words."""
    # Not random: the library of random numbers takes megabytes itself.
    lengths = [4 + (i * 37) % 53 + (107 if i % 9 == 0 else 0) for i in range(count)]
    known = words()
    starts = [(i * 7919) % (len(known) - 200) for i in range(count)]
    return [" ".join(known[a : a + n]) for a, n in zip(starts, lengths, strict=True)]


def engine(name: str, model: str) -> Callable[[list[str], str], Any]:
    """Import and construct an engine: a function of texts and task; it may load at the first."""
    kind, _, option = name.partition(" ")
    if kind.endswith("Runtime"):
        from gemma_embed import Embedder, runtimes

        keyword = {"TransformersRuntime": "dtype", "OnnxRuntime": "precision"}.get(kind)
        embedder = Embedder(getattr(runtimes, kind)(model, **{keyword: option} if keyword else {}))
        return lambda texts, task: embedder.embed(texts, task)
    if kind == HUGGING_FACE:
        from langchain_huggingface import HuggingFaceEmbeddings

        peer = HuggingFaceEmbeddings(model_name=model, model_kwargs={"device": "cpu"})
        return lambda texts, task: peer.embed_documents([PROMPTS[task] + one for one in texts])
    if kind == "fastembed":
        from fastembed import TextEmbedding

        fast = TextEmbedding("google/embeddinggemma-300m", specific_model_path=model)
        return lambda texts, task: [*fast.embed([PROMPTS[task] + one for one in texts])]
    from sentence_transformers import SentenceTransformer

    if option in ("float32", "bfloat16"):
        options: dict[str, Any] = {"model_kwargs": {"dtype": option}}
    else:
        options = {"backend": option.partition(" ")[0]}
    reference = SentenceTransformer(model, device="cpu", **options)
    return lambda texts, task: reference.encode(
        texts, prompt=PROMPTS[task], batch_size=BATCH, normalize_embeddings=True
    )


def peak_memory() -> float:
    """Return this process's peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def work(name: str, model: str) -> None:
    """Answer the parent's lines: import and load, then embed what each line says."""
    stages = {"Python": peak_memory()}
    if name.startswith("OnnxRuntime"):
        for package in ("numpy", "gemma_embed.runtimes", "onnxruntime"):
            __import__(package)
            stages[package] = peak_memory()
    embed = engine(name, model)
    embed([QUESTION], "query")
    stages["load, one query"] = peak_memory()
    print(json.dumps(stages), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        vectors = embed(order["texts"], order["task"])
        answer = {"seconds": time.perf_counter() - start, "peak": peak_memory()}
        if order["save"]:
            import numpy

            numpy.save(order["save"], numpy.asarray(vectors, numpy.float32))
        print(json.dumps(answer), flush=True)


class Worker:
    """The process of one engine."""

    def __init__(self, name: str, model: str, python: str = sys.executable) -> None:
        """Start it and wait for its first vector."""
        begun = time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-W", "ignore", __file__, "--worker", name, model],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.stages: dict[str, float] = self._answer()
        self.ready = time.perf_counter() - begun

    def embed(self, texts: list[str], task: str = "document", save: str = "") -> dict[str, float]:
        """Return the seconds that the texts took, and the peak of memory."""
        assert self._process.stdin
        order = {"texts": texts, "task": task, "save": save}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        self._process.communicate()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        for line in self._process.stdout:
            # Libraries print, too.
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise SystemExit(f"an engine ended: {self._process.args}")


def timed(workers: dict[str, Worker], texts: list[str], task: str, rounds: int) -> dict[str, Any]:
    """Return the seconds of each engine in each round; one before them is not counted."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            seconds = worker.embed(texts, task)["seconds"]
            if number:
                times[name].append(seconds)
    return times


def vectors_of(worker: Worker, texts: list[str], folder: str) -> np.ndarray:
    """Return the vectors of one engine as documents, float32, (texts, 768)."""
    import numpy

    worker.embed(texts, save=f"{folder}/vectors.npy")
    vectors: np.ndarray = numpy.load(f"{folder}/vectors.npy")
    return vectors


def main() -> None:
    """Print and save one table."""
    import argparse
    import tempfile

    import full_size
    from pairs import machine, ratio, save, spread

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model",
        default=".full-size",
        help="the folder of EmbeddingGemma's weights; by default random ones of its size are made",
    )
    parser.add_argument("--engines", nargs="*", default=[*PEERS, *OURS])
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=FOLDER,PYTHON")
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--lengths", type=int, nargs="*", default=[], help="in tokens")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--result", default="engines")
    options = parser.parse_args()
    full_size.build(Path(options.model))
    started = dict.fromkeys(options.engines, (options.model, sys.executable))
    for one in options.also:
        name, _, where = one.partition("=")
        folder, _, python = where.partition(",")
        started[name] = (folder, python or sys.executable)
    for name, how in started.items():
        if name.startswith(("OnnxRuntime", "GgufRuntime")):
            # Writes what is written once.
            Worker(name, *how).close()
    workers = {name: Worker(name, *how) for name, how in started.items()}
    first = next(iter(workers))
    found: dict[str, Any] = {
        "texts": options.texts,
        "engines": {name: {} for name in workers},
    }
    if options.lengths:
        sets = {length: _of_length(options.model, length) for length in options.lengths}
    else:
        sets = {0: many_texts(options.texts)}
        with tempfile.TemporaryDirectory() as place:
            exact = vectors_of(workers.get(REFERENCE, workers[first]), sets[0], place)
            for name, worker in workers.items():
                cosines = (vectors_of(worker, sets[0], place) * exact).sum(1)
                found["engines"][name]["cosine"] = [float(cosines.min()), float(cosines.mean())]
        questions = timed(workers, [QUESTION], "query", 6 * options.rounds)
        for name, worker in workers.items():
            worker.stages["100 texts"] = worker.embed(many_texts())["peak"]
            (longest,) = _of_length(options.model, 2048)
            worker.stages["a text of 2,048 tokens"] = worker.embed([longest])["peak"]
            found["engines"][name] |= {
                "ready": worker.ready,
                "stages": worker.stages,
                "query_seconds": questions[name],
            }
    found["tokens"] = {length: _tokens(options.model, texts) for length, texts in sets.items()}
    for length, texts in sets.items():
        documents = timed(workers, texts, "document", options.rounds)
        for name in workers:
            found["engines"][name].setdefault("seconds", {})[length] = documents[name]
    for worker in workers.values():
        worker.close()

    print(f"{machine()}\ntokens: {found['tokens']}\n")
    for name, one in found["engines"].items():
        cells = [name]
        for length, times in one["seconds"].items():
            speeds = [found["tokens"][length] / seconds for seconds in times]
            cells += [
                spread(speeds, "tokens/s", 0),
                ratio(found["engines"][first]["seconds"][length], times),
            ]
        if "ready" in one:
            cells += [
                spread([seconds * 1000 for seconds in one["query_seconds"]], "ms"),
                ratio(found["engines"][first]["query_seconds"], one["query_seconds"]),
                ", ".join(f"{stage} {peak:,.0f}" for stage, peak in one["stages"].items()),
                f"{one['ready']:.1f} s",
                "{:.7f}, {:.7f}".format(*one["cosine"]),
            ]
        print("| " + " | ".join(cells) + " |")
    save(options.result + ("-lengths" if options.lengths else ""), found)


def _tokens(model: str, texts: list[str]) -> int:
    from gemma_embed.runtimes import OnnxRuntime

    return sum(OnnxRuntime(model).count_tokens([PROMPTS["document"] + one for one in texts]))


def _of_length(model: str, length: int) -> list[str]:
    """Return texts of the notes with at most so many tokens, the prompt counted, 1,024 in all."""
    from gemma_embed.runtimes import OnnxRuntime

    count = OnnxRuntime(model).count_tokens
    known = words() * 3
    found = []
    for number in range(max(1, 1024 // length)):
        place = number * 7919 % (len(known) // 3)
        size = length
        while count([PROMPTS["document"] + " ".join(known[place : place + size])])[0] > length:
            size -= max(1, size // 40)
        found.append(" ".join(known[place : place + size]))
    return found


if __name__ == "__main__":
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ORT_DISABLE_TELEMETRY": "1",
    }
    if sys.argv[1:2] == ["--worker"]:
        work(*sys.argv[2:])
    else:
        main()
