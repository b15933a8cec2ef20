"""What the browser example costs: size, first load and time of a question, in headless Chromium.

    PYTHONPATH=tests/browser python benchmarks/browser.py --model bundled
    PYTHONPATH=tests/browser python benchmarks/browser.py --model FOLDER --precision int8

An empty profile: nothing is cached. The server is on this machine, so a load has no network in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from chromium import export, visit

QUESTIONS = [
    "How hot should the inside of my bread be?",
    "Why does my wifi get slow?",
    "Wie kündige ich meine Wohnung?",
    "When are dahlias dug up?",
    "How do I undo a rebase?",
    "What is in the first aid kit for burns?",
    "Which key for SSH?",
    "How coarse is the coffee ground?",
]


def main() -> None:
    """Export, visit, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", default="int8")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        export(site, "--model", options.model, "--precision", options.precision)
        size = {
            part: sum(file.stat().st_size for file in site.rglob(f"{part}/**/*") if file.is_file())
            for part in ("lib", "model")
        }
        seen = visit(site, Path(folder) / "profile", QUESTIONS)
    if not isinstance(seen["ready"], float):
        sys.exit(str(seen["ready"]))
    first, *others = [answer["milliseconds"] for answer in seen["answers"]]
    print(f"library {size['lib'] / 1e6:.1f} MB, model {size['model'] / 1e6:.1f} MB")
    print(f"first load {seen['seconds']:.1f} s, of it in the page {seen['ready']:.1f} s")
    print(f"first question {first} ms, others {statistics.median(others):.0f} ms (median)")
    for answer in seen["answers"]:
        print(f"{answer['question']} -> {answer['titles'][0]}")


if __name__ == "__main__":
    main()
