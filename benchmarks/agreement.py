"""Every runtime and precision against sentence-transformers in float32, on the same texts.

Each runs in a process of its own and embeds the passages and questions of three sets (``sets.py``).
A row has the cosines of all its vectors to the reference's, the share of each question's ten
nearest passages that is the same, recall@1 over all questions, tokens a second over the passages,
the process's peak memory (VmHWM, MB of 10^6 bytes, pages of files included), and the seconds from
the first import to the first vector; files that an ONNX row makes once are there already. Runtimes
are named as in ``gemma-embed verify``; ``gguf:q8_0`` is a file that is written here, and
``llama-server:q8_0`` llama.cpp's own server on it, by ``OpenAIRuntime``. A server works in another
process, so its row has no memory. Rows that were measured before are kept.

Run: PYTHONPATH=tests python benchmarks/agreement.py --model FOLDER
     PYTHONPATH=tests python benchmarks/agreement.py --model FOLDER ollama http://127.0.0.1:8080/v1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Only the parent imports what it needs alone: the measured process must not count the benchmark's
# own memory.
if TYPE_CHECKING:
    import numpy as np
    from sets import Set

REFERENCE = "sentence-transformers"
LOCAL = ("transformers", "transformers:bfloat16", "onnx", "onnx:int8", "onnx:int4")
GGUF = ("gguf:f32", "gguf:bf16", "gguf:q8_0", "gguf:q4_0")
PEERS = (f"{REFERENCE}:bfloat16",)
SERVERS = ("ollama", "openai", "http", "llama-server")
ALL = (*PEERS, *LOCAL, *GGUF, "llama-server:q8_0")


def alone(name: str, where: str, model: str, folder: Path, *, first: bool) -> None:
    """Compute the vectors of one row in this process, and write them and its figures.

    Or with ``first`` one vector, so that what is made on the first use is there.

    Args:
        name: The row's.
        where: What ``engine`` takes for it.
        model: The checkpoint's folder.
        folder: Of texts and vectors.
        first: See above.
    """
    prompted = json.loads((folder / "texts.json").read_text())
    start = time.perf_counter()
    embed = engine(where, model)
    embed(prompted["questions"][:1])
    ready = time.perf_counter() - start
    if first:
        print("{}")
        return
    start = time.perf_counter()
    passages = embed(prompted["passages"])
    seconds = time.perf_counter() - start
    questions = embed(prompted["questions"])

    import numpy as np
    from pairs import peak_memory

    figures = {"ready": ready, "seconds": seconds, "peak": peak_memory()}
    np.savez(folder / f"{file_of(name)}.npz", passages=passages, questions=questions, **figures)
    print(json.dumps(figures))


def engine(name: str, model: str) -> Any:
    """Return a function from prompted texts to vectors."""
    kind, _, precision = name.partition(":")
    if kind == REFERENCE:
        import torch
        from sentence_transformers import SentenceTransformer

        options = {"dtype": getattr(torch, precision or "float32")}
        loaded = SentenceTransformer(model, device="cpu", model_kwargs=options)
        # Its fastest batches: little padding.
        encode = loaded.encode

        def unit(texts: list[str]) -> np.ndarray:
            vectors = encode(texts, batch_size=4)
            # Its own normalisation rounds to bfloat16, too: cosines above 1.
            return vectors / (vectors**2).sum(axis=1, keepdims=True) ** 0.5

        return unit
    from gemma_embed import Embedder
    from gemma_embed.commands.runtime import opened
    from gemma_embed.evaluate.settings import WithoutPrompts

    in_process = kind in ("transformers", "onnx", "mlx")
    runtime = opened(name, model if in_process else None)
    return Embedder(WithoutPrompts(runtime)).embed


def file_of(name: str) -> str:
    """Return a row's name as a file's."""
    return "".join(each if each.isalnum() else "-" for each in name)


def measured(name: str, model: str, folder: Path) -> dict[str, np.ndarray]:
    """Run one row in a process of its own, unless the folder has its vectors."""
    import numpy as np
    from pairs import in_own_process

    path = folder / f"{file_of(name)}.npz"
    if not path.exists():
        with place_of(name, model, folder) as where:
            for step in ("--first", "--alone") if name.startswith("onnx") else ("--alone",):
                in_own_process(step, name, where, model, str(folder))
    with np.load(path) as found:
        return dict(found)


@contextmanager
def place_of(name: str, model: str, folder: Path) -> Iterator[str]:
    """Write a row's file, or start its server; give what ``engine`` takes."""
    kind, _, precision = name.partition(":")
    if kind not in ("gguf", "llama-server"):
        yield name
        return
    from gguf_files import llama_server

    from gemma_embed.export import export_gguf

    file = folder / f"{precision}.gguf"
    if not file.exists():
        export_gguf(model, file, precision=precision)  # type: ignore[arg-type]
    if kind == "gguf":
        yield str(file)
        return
    with llama_server(file, threads=os.cpu_count()) as address:
        yield f"{address}/v1"


def ranked(vectors: dict[str, np.ndarray], sets: dict[str, Set]) -> list[list[str]]:
    """Return the ten nearest passages of every question, those of its own set."""
    import numpy as np

    found = []
    row = question = 0
    for passages, questions in sets.values():
        names = [str(each.id) for each in passages]
        own = vectors["passages"][row : row + len(passages)]
        asked = vectors["questions"][question : question + len(questions)]
        order = np.argsort(-(asked @ own.T), axis=1, kind="stable")[:, :10]
        found += [[names[place] for place in places] for places in order]
        row, question = row + len(passages), question + len(questions)
    return found


def figures_of(
    name: str,
    found: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    sets: dict[str, Set],
    tokens: int,
) -> dict[str, Any]:
    """Return the figures of one row."""
    import numpy as np

    from gemma_embed.evaluate import agreement
    from gemma_embed.evaluate.scores import scored

    pairs = [agreement(reference[each], found[each]) for each in ("passages", "questions")]
    cosines = np.concatenate([each.cosines for each in pairs])
    first, second = ranked(reference, sets), ranked(found, sets)
    kept = [len({*a} & {*b}) / len(a) for a, b in zip(first, second, strict=True)]
    right = [
        {*each.passages, *(f"{document}#1" for document in each.documents)}
        for _, questions in sets.values()
        for each in questions
    ]
    return {
        "cosine, least": round(float(cosines.min()), 6),
        "cosine, mean": round(float(cosines.mean()), 6),
        "ten nearest kept": round(float(np.mean(kept)), 4),
        "recall@1": round(float(scored(right, second)["recall@1"].mean()), 4),
        "tokens/s": round(tokens / float(found["seconds"])),
        "peak MB": None if name.startswith(SERVERS) else round(float(found["peak"])),
        "ready s": round(float(found["ready"]), 1),
    }


def main() -> None:
    """Print and save the table."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if sys.argv[1:2] in (["--alone"], ["--first"]):
        name, where, model, folder = sys.argv[2:]
        alone(name, where, model, Path(folder), first=sys.argv[1] == "--first")
        return
    from pairs import RESULTS, machine, save
    from sets import all_sets
    from transformers import AutoTokenizer

    from gemma_embed.models import EMBEDDINGGEMMA_300M

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runtimes", nargs="*", default=ALL)
    parser.add_argument("--limit", type=int, help="texts and questions of a set; nothing is saved")
    parser.add_argument("--model", required=True, help="the checkpoint's folder")
    parser.add_argument("--vectors", type=Path, default=Path(".agreement"), help="kept vectors")
    options = parser.parse_args()
    sets, prompts = all_sets(), EMBEDDINGGEMMA_300M.prompts
    if options.limit:
        sets = {
            name: (passages[: options.limit], questions[: options.limit])
            for name, (passages, questions) in sets.items()
        }
    items = [each for passages, _ in sets.values() for each in passages]
    asked = [each for _, questions in sets.values() for each in questions]
    prompted = {
        "passages": [
            prompts.prompted(each.text, "document", each.metadata["title"]) for each in items
        ],
        "questions": [prompts.prompted(each.text, "query") for each in asked],
    }
    options.vectors.mkdir(exist_ok=True)
    (options.vectors / "texts.json").write_text(json.dumps(prompted))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokens = sum(len(ids) for ids in tokenizer(prompted["passages"])["input_ids"])
    results = RESULTS / "agreement.json"
    kept = results.exists() and not options.limit
    rows = json.loads(results.read_text())["rows"] if kept else {}
    reference = measured(REFERENCE, options.model, options.vectors)
    for name in (REFERENCE, *options.runtimes):
        found = measured(name, options.model, options.vectors)
        rows[name] = figures_of(name, found, reference, sets, tokens)
        if not options.limit:
            save("agreement", {"tokens": tokens, "texts": len(items) + len(asked), "rows": rows})
    print(f"{machine()}\n\n| | {' | '.join(rows[REFERENCE])} |")
    for name, figures in rows.items():
        print(f"| {name} | " + " | ".join(map(str, figures.values())) + " |")


if __name__ == "__main__":
    main()
