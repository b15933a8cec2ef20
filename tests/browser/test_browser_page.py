"""The example's page in headless Chromium: its vectors, its answers, and what it loads. Run with

npm install --ignore-scripts --prefix examples/browser && pytest -m browser
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from chromium import CHROMIUM, NODE, PLAYWRIGHT, export, visit

from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime

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


@pytest.mark.parametrize(
    ("precision", "vectors", "least"), [("int8", "int8", 0.995), ("float32", "float32", 0.99999)]
)
def test_the_page_embeds_and_finds_as_python_does(
    precision: str, vectors: str, least: float, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    export(site, "--precision", precision, "--vectors", vectors)
    seen = visit(site, tmp_path / "profile", list(QUESTIONS))
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


def test_vectors_of_another_export_are_refused(tmp_path: Path) -> None:
    site = tmp_path / "site"
    export(site)
    (site / "vectors.bin").write_bytes(b"\0" * 256)
    seen = visit(site, tmp_path / "profile", list(QUESTIONS))
    assert "vectors.bin does not belong to index.json" in str(seen["ready"])
