"""The example's page in headless Chromium: its vectors, its answers, and what it loads. Run with

npm install --ignore-scripts --prefix examples/browser && pytest -m browser
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "browser"
PLAYWRIGHT = EXAMPLE / "node_modules" / "playwright-core" / "index.mjs"
NODE = shutil.which("node")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUESTIONS = {
    "How hot should the inside of my bread be?": "Sourdough weekend loaf",
    "Why does my wifi get slow?": "Wi-Fi interference in the flat",
}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        NODE is None or CHROMIUM is None or not PLAYWRIGHT.is_file(),
        reason="needs Chromium (CHROMIUM=<its program>), Node 20 and the example's packages; run: "
        "npm install --ignore-scripts --prefix examples/browser && pytest -m browser",
    ),
]


def export(site: Path, *options: str) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLE / "export.py", "--site", site, *options],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr


def visit(site: Path, profile: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    import serve

    with serve.server(site) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        job = {
            "playwright": str(PLAYWRIGHT),
            "chromium": CHROMIUM,
            "profile": str(profile),
            "url": f"http://127.0.0.1:{serving.server_port}/",
            "questions": list(QUESTIONS),
        }
        assert NODE is not None
        done = subprocess.run(
            [NODE, Path(__file__).parent / "open.mjs"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
        )
        serving.shutdown()
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    answer["host"] = f"127.0.0.1:{serving.server_port}"
    return answer


@pytest.mark.parametrize(
    ("precision", "vectors", "least"), [("int8", "int8", 0.995), ("float32", "float32", 0.99999)]
)
def test_the_page_embeds_and_finds_as_python_does(
    precision: str, vectors: str, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    export(site, "--precision", precision, "--vectors", vectors)
    seen = visit(site, tmp_path / "profile", monkeypatch)
    assert seen["complaints"] == []
    assert isinstance(seen["ready"], float), seen["ready"]
    assert seen["hosts"] == [seen["host"]]
    assert not seen["overflow"]
    embedder = Embedder(OnnxRuntime(site / "model", precision=precision), dimensions=256)
    for answer in seen["answers"]:
        own = embedder.embed_query(answer["question"])
        assert np.dot(own, answer["vector"]) >= least
        assert answer["titles"][0] == QUESTIONS[answer["question"]]
        assert len(answer["titles"]) == 5


def test_vectors_of_another_export_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    export(site)
    (site / "vectors.bin").write_bytes(b"\0" * 256)
    seen = visit(site, tmp_path / "profile", monkeypatch)
    assert "vectors.bin does not belong to index.json" in str(seen["ready"])
