"""Writes the golden vectors by which a server is asked whether it computes the sliding window.

    PYTHONPATH=tests python benchmarks/window.py FOLDER

FOLDER is a checkpoint with EmbeddingGemma's real weights. Prints for each precision the cosines of
its own vector to both golden ones.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from broken import FAULTS, Broken, Network

from gemma_embed.models import EMBEDDINGGEMMA_300M, window

_FAULTS = dict(zip(window.NAMES, ("ok", "window_too_wide/none"), strict=True))


def main() -> None:
    """Compute and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    network = Network(folder)
    found = {
        name: window.stored(Broken(network, FAULTS[fault]).vectors([window.TEXT])[0])
        for name, fault in _FAULTS.items()
    }
    made = {"model": EMBEDDINGGEMMA_300M.name, "command": "python benchmarks/window.py FOLDER"}
    window.PATH.write_text(json.dumps(made | found, indent=1) + "\n", encoding="utf-8")
    window.golden.cache_clear()
    print(f"{len(network.tokens(window.TEXT))} tokens")
    for precision in ("float32", "bfloat16", "q8_0", "q4_0", "int4"):
        network = Network(folder, precision)
        for name, fault in _FAULTS.items():
            vector = Broken(network, FAULTS[fault]).vectors([window.TEXT])[0]
            cosines = window.cosines(np.asarray(vector))
            print(f"{precision:9} {name:10}", *(f"{each:.4f}" for each in cosines))


if __name__ == "__main__":
    main()
