"""Two runtimes compared on the same texts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeRuntime
from sklearn.neighbors import NearestNeighbors

from gemma_embed import cli
from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.evaluate import Question, agreement, compare, read_passages
from gemma_embed.models import Model
from gemma_embed.passages import Passage
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.testing import bundled_runtime
from gemma_embed.vectors import Vectors

NOTES = Path(__file__).parents[2] / "examples" / "notes"


class Narrow(FakeRuntime):
    @property
    def model(self) -> Model:
        return replace(super().model, width=512)


def unit(count: int, seed: int, noise: float = 0.0) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(count, 64))
    vectors += noise * np.random.default_rng(seed + 1).normal(size=vectors.shape)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_neighbours_are_those_of_scikit_learn() -> None:
    first, second = unit(60, 1), unit(60, 1, noise=0.7)
    sides = []
    for vectors in (first, second):
        index = NearestNeighbors(n_neighbors=10).fit(vectors)
        sides.append(index.kneighbors(return_distance=False))
    found = agreement(first, second)
    wanted = [len({*a} & {*b}) / 10 for a, b in zip(*sides, strict=True)]
    assert list(found.shared) == wanted
    assert 0.3 < found.shared.mean() < 0.9
    assert found.first_kept == np.mean(sides[0][:, 0] == sides[1][:, 0])
    assert found.cosines == pytest.approx((first * second).sum(1), abs=1e-6)


def test_equal_vectors_agree() -> None:
    found = agreement(unit(7, 1), unit(7, 1)).as_dict()
    assert found["nearest"] == 3
    assert found["nearest shared, least"] == found["first neighbour kept"] == 1
    assert found["cosine, least"] == pytest.approx(1)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 3 texts"):
        agreement(unit(2, 1), unit(2, 2))
    with pytest.raises(ConfigurationError, match="the same width"):
        agreement(unit(5, 1), unit(5, 1)[:, :32])
    with pytest.raises(ConfigurationError, match="both runtimes are called 'a'"):
        compare(FakeRuntime(), FakeRuntime(), [], names=("a", "a"))
    wide = FakeRuntime()
    for texts, second in ((["a", "b"], FakeRuntime()), (["a", "b", "c"], Narrow())):
        with pytest.raises(ConfigurationError, match="least 3 texts, and only at the same width"):
            compare(wide, second, map(Passage, texts))
        assert wide.calls == second.calls == 0
    with pytest.raises(InvalidInput, match="index 1"):
        compare(FakeRuntime(), FakeRuntime(), [Passage("a"), {"title": "b"}])


def test_precisions_of_the_notes_are_near_and_recall_shows_it(tmp_path: Path) -> None:
    passages = [replace(each, text=each.text[:200]) for each in read_passages(NOTES)[:12]]
    questions = [Question("Which passwords are safe?", (str(passages[1].id),))]
    second = OnnxRuntime("bundled", precision="int4")
    found = compare(
        bundled_runtime(), second, passages, questions, names=("a", "b"), store=tmp_path / "s"
    )
    # docs/runtimes.md: at least 0.9938 for int4 on the bundled model.
    assert 0.99 < found.agreement.cosines.min() < found.agreement.cosines.mean() < 0.9995
    assert found.agreement.nearest == 5
    assert found.agreement.shared.mean() > 0.8
    assert found.report is not None
    assert [row.setting.runtime for row in found.report.rows] == ["a", "b"]
    worst = passages[int(found.agreement.cosines.argmin())].id
    assert f"(passage {worst})" in str(found)
    assert json.loads(json.dumps(found.as_dict()))["agreement"]["texts"] == 12
    found.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("Mars is red.\nVenus is hot.\nThe cat sleeps.\nBread is baked.\n")
    call = ["compare", "onnx", "onnx:int8", "--model", "bundled", "--texts", str(texts)]
    call += ["--store", str(tmp_path / "s")]
    assert cli.main(call) == 0
    assert "onnx:int8 against onnx, 4 texts\ncosine: mean 0.99" in capsys.readouterr().out
    assert cli.main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] is None
    texts.write_text("one\ntwo\n")
    assert cli.main(call) == 2
    assert "at least 3 texts" in capsys.readouterr().err
