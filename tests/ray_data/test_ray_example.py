"""The example is run as its line says, and again: nothing is computed twice."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray", reason='needs Ray Data: pip install "gemma-embed[ray]"')

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_data.py"


def test_a_table_becomes_an_index_and_a_second_run_computes_nothing(tmp_path: Path) -> None:
    texts = ["Mars is called the Red Planet.", None, "Venus is Earth's twin in size."]
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": texts}), tmp_path / "texts.parquet")
    (tmp_path / "token").write_text(secrets.token_hex(32))
    environment = os.environ | {
        # Not the one in the home folder.
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = [sys.executable, str(EXAMPLE), "texts.parquet", "--workers", "1"]
    printed = [
        subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    vectors = "2 vectors in the store; without one: {'invalid': 1}.\n"
    assert printed[0] == vectors + "2 rows added to the index, 0 were there.\n"
    assert printed[1] == vectors + "0 rows added to the index, 2 were there.\n"
    # A row that can never be embedded is finished, too.
    assert sum(pq.read_metadata(path).num_rows for path in tmp_path.glob("vectors/*.parquet")) == 3
