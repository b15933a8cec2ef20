"""What precision, width, prompts and titles do to retrieval, on the sets that the project ships.

Vectors are computed once for each precision at full width, and kept in ``--store`` if one is named.

Run: python benchmarks/quality.py --model FOLDER
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pairs import machine, save
from sets import all_sets

from gemma_embed.evaluate import evaluate
from gemma_embed.runtimes import OnnxRuntime, Runtime, TransformersRuntime


def main() -> None:
    """Print and save the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=os.environ.get("GEMMA_EMBED_WEIGHTS", "bundled"))
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    runtimes: dict[str, Runtime] = {
        "float32": OnnxRuntime(options.model),
        "bfloat16": TransformersRuntime(options.model, device="cpu", dtype="bfloat16"),
        "int8": OnnxRuntime(options.model, precision="int8"),
        "int4": OnnxRuntime(options.model, precision="int4"),
    }
    found = {}
    for name, (passages, questions) in all_sets().items():
        report = evaluate(
            passages,
            questions,
            runtimes,
            prompts=(True, False),
            titles=(True, False),
            overlong=("truncate",),
            store=options.store,
            timed=0,
        )
        print(f"\n{name}\n{report}")
        found[name] = {
            report.name(row): {
                metric: round(each.mean, 4) for metric, each in row.intervals.items()
            }
            for row in report.rows
        }
    save("quality", {"machine": machine(), "scores": found})


if __name__ == "__main__":
    main()
