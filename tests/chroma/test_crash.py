"""A small run of the crash campaign, which says more about what is checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "crash.py"


def test_kills_and_torn_files_cost_at_most_a_batch_each() -> None:
    options = ["--documents", "300", "--kills", "4", "--tear", "1", "--seed", "2"]
    # So low that there are files to tear from the first batch on.
    options += ["--sync-threshold", "50", "--no-save"]
    run = subprocess.run(
        [sys.executable, str(CAMPAIGN), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert report["kills"] == 4
    assert report["torn"] > 0
    assert report["half written"] > 0
    assert report["unchanged in one more run"] == 300 * report["ingestions"]
    assert (report["lost"], report["doubled"], report["different"]) == (0, 0, 0)
    assert report["computed in recreating"] == 0
    assert report["texts computed again"] <= report["texts allowed again"] <= 4 * 64
    assert report["most texts lost to one kill"] <= report["texts in a batch"] == 64
