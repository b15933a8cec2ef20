"""One table and one plot of the engines in process, from the results of the other benchmarks.

Ratios are those of one run: each engine against the peer that was timed in turn with it.

Run, after local.py (both dtypes), without_torch.py and memory.py: python benchmarks/summary.py
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from pairs import RESULTS, ratio

OURS, PEERS = "#1a73e8", "#9aa0a6"
HUGGING_FACE, BEST = "HuggingFaceEmbeddings", "sentence-transformers"


@dataclass(frozen=True)
class Engine:
    """One row.

    Attributes:
        label: Its name in the table.
        run: The result file of the run.
        name: Its name in that run.
        peer: The engine it is compared with in that run; None for a peer itself.
        memory: Its name among the results of memory.py, None if it was not measured.
    """

    label: str
    run: str
    name: str
    peer: str | None
    memory: str | None


ENGINES = (
    Engine("HuggingFaceEmbeddings, defaults", "local-float32", HUGGING_FACE, None, HUGGING_FACE),
    Engine("sentence-transformers, its best batch size", "local-float32", BEST, None, None),
    Engine(
        "sentence-transformers, bfloat16, its best batch size",
        "local-bfloat16",
        BEST,
        None,
        "sentence-transformers bfloat16",
    ),
    Engine(
        "TransformersRuntime, float32",
        "local-float32",
        "gemma-embed",
        HUGGING_FACE,
        "TransformersRuntime float32",
    ),
    Engine(
        "TransformersRuntime, bfloat16",
        "local-bfloat16",
        "gemma-embed",
        BEST,
        "TransformersRuntime bfloat16",
    ),
    *(
        Engine(
            f"OnnxRuntime, {precision}",
            "without-torch",
            precision,
            HUGGING_FACE,
            f"OnnxRuntime {precision}",
        )
        for precision in ("float32", "int8", "int4")
    ),
)


@dataclass(frozen=True)
class Row:
    """Measured medians of one engine."""

    engine: Engine
    speed: float
    faster: str
    latency: float | None
    quicker: str
    memory: float | None


def rows() -> list[Row]:
    """Read the result files.

    Raises:
        FileNotFoundError: If a benchmark has not run yet.
    """
    memory = _result("memory")
    found = []
    for engine in ENGINES:
        run = _result(engine.run)
        documents, queries = run["seconds"], run["query_seconds"]
        # If the peer's queries were not timed, use sentence-transformers', which is the same code.
        peer = engine.peer if engine.peer in queries else BEST
        ours = engine.peer is not None
        times = queries.get(engine.name)
        found.append(
            Row(
                engine,
                run["tokens"] / statistics.median(documents[engine.name]),
                ratio(documents[engine.peer], documents[engine.name]) if engine.peer else "",
                statistics.median(times) * 1000 if times else None,
                ratio(queries[peer], times) if ours and times else "",
                memory[engine.memory]["stages"]["100 texts"] if engine.memory else None,
            )
        )
    return found


def show(found: list[Row]) -> None:
    """Print the table, and the machines of the results."""
    print("; ".join(sorted({_result(row.engine.run)["machine"] for row in found})), end="\n\n")
    print("| | Tokens/s | Times its peer | One query | Times its peer | Peak memory |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in found:
        latency = "" if row.latency is None else f"{row.latency:.0f} ms"
        memory = "" if row.memory is None else f"{row.memory:,.0f} MB"
        print(
            f"| {row.engine.label} | {row.speed:,.0f} | {row.faster} | {latency} | {row.quicker} "
            f"| {memory} |"
        )


def plot(found: list[Row], path: Path) -> None:
    """Draw speed and memory side by side, ours in colour."""
    # The same numbers give the same file.
    mpl.rcParams["svg.hashsalt"] = "gemma-embed"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    speed, memory = figure.subplots(1, 2, sharey=True)
    labels = [row.engine.label for row in found]
    colours = [OURS if row.engine.peer else PEERS for row in found]
    for axes, title, values in (
        (speed, "Tokens a second, mixed documents", [row.speed for row in found]),
        (memory, "Peak memory of the process, MB", [row.memory or 0 for row in found]),
    ):
        bars = axes.barh(labels, values, color=colours)
        axes.bar_label(
            bars, [f"{value:,.0f}" if value else "not measured" for value in values], padding=3
        )
        axes.set_title(title, fontsize=10)
        axes.margins(x=0.18)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.set_xticks([])
    speed.invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


def _result(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return value


def main() -> None:
    """Print the table and write the plot."""
    found = rows()
    show(found)
    plot(found, RESULTS / "summary.svg")


if __name__ == "__main__":
    main()
