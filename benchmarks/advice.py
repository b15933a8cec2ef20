"""How often the advice of ``gemma_embed.evaluate`` is wrong: half of the questions on the others.

The questions of the three sets together are halved 100 times. What one half says of a setting is
compared with what the other half shows: "loses" is wrong if it loses nothing there, "gains" if it
gains nothing there, and "loses nothing, or less than" if it loses more there. The other half errs
as well, so some of what counts as wrong is not.

Run: python benchmarks/advice.py --model FOLDER --store FILE
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from pairs import save
from sets import all_sets

from gemma_embed.evaluate import Report, Row, evaluate
from gemma_embed.evaluate.report import ADVISED, TOLERATED
from gemma_embed.runtimes import OnnxRuntime

TRIALS = 100


def together(reports: list[Report]) -> Report:
    """Return one report over the questions of several with the same settings."""
    rows = [
        replace(same[0], scores={ADVISED: np.concatenate([row.scores[ADVISED] for row in same])})
        for same in zip(*(report.rows for report in reports), strict=True)
    ]
    return replace(reports[0], rows=tuple(rows), questions=sum(each.questions for each in reports))


def part(report: Report, chosen: np.ndarray) -> Report:
    """Return the report on some of the questions."""
    rows = [Row(row.setting, {ADVISED: row.scores[ADVISED][chosen]}) for row in report.rows]
    return replace(report, rows=tuple(rows), questions=len(chosen))


def judged(report: Report, trials: int) -> dict[str, dict[str, int]]:
    """Count what halves say, and what of it the other halves contradict."""
    draw = np.random.default_rng(0)
    said: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for _ in range(trials):
        order = draw.permutation(report.questions)
        half = len(order) // 2
        here = part(report, order[:half]).differences()
        there = part(report, order[half:]).differences()
        for found, truth in list(zip(here, there, strict=True))[1:]:
            if found.low > 0:
                kind, bad = "gains", truth.mean <= 0
            elif found.high < 0:
                kind, bad = "loses", truth.mean >= 0
            elif found.low > -TOLERATED:
                kind, bad = "loses nothing, or less than", truth.mean < found.low
            else:
                kind, bad = "not decided", False
            said[kind] += 1
            wrong[kind] += bad
    return {kind: {"said": said[kind], "contradicted": wrong[kind]} for kind in said}


def main() -> None:
    """Print and save the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    runtimes = {
        "float32": OnnxRuntime(options.model),
        "int8": OnnxRuntime(options.model, precision="int8"),
        "int4": OnnxRuntime(options.model, precision="int4"),
    }
    both = (True, False)
    reports = [
        evaluate(
            *each,
            runtimes,
            prompts=both,
            titles=both,
            overlong=("truncate",),
            store=options.store,
            timed=0,
        )
        for each in all_sets().values()
    ]
    whole = together(reports)
    counts = judged(whole, TRIALS)
    print("\n".join(whole.advice()))
    print(f"\n{TRIALS} halves of {whole.questions} questions, {len(whole.rows) - 1} settings")
    for kind, each in counts.items():
        print(f"{kind}: {each['said']}, contradicted {each['contradicted']}")
    save("advice", {"trials": TRIALS, "questions": whole.questions, "counts": counts})


if __name__ == "__main__":
    main()
