"""verify on the bundled model: every fault made for real is named, and what is intact is ok."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken import FAULTS, OTHER_FAULTS, Broken, Fault, Network
from fakes import FakeRuntime
from ollama_server import OllamaServer, ServedModel

from gemma_embed import cli
from gemma_embed.commands import runtime as named
from gemma_embed.errors import ConfigurationError, ConnectionFailed
from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, Model
from gemma_embed.runtimes import (
    Batch,
    GgufRuntime,
    OllamaRuntime,
    OnnxRuntime,
    Runtime,
    TooLong,
    TransformersRuntime,
)
from gemma_embed.testing import bundled_runtime
from gemma_embed.verify import CAUSES, Verdict, verify
from gemma_embed.verify.golden import compared, golden_of, probes

FOLDER = Path(cli.__file__).parent / "bundled"
GOLDEN = golden_of(BUNDLED.name)
# The bundled tokenizer lowercases and collapses white space itself; no layer of it is global; and
# its Dense layers keep the width.
UNSEEN = {
    *("lowercase", "whitespace_collapsed", "newlines_to_spaces", "text_stripped"),
    *("prompt_stripped", "space_before", "rope_all_local", "no_second_dense", "no_dense"),
}
SEEN = {name: fault for name, fault in (FAULTS | OTHER_FAULTS).items() if name not in UNSEEN}


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(FOLDER)


@pytest.mark.parametrize("name", SEEN)
def test_each_fault_is_named_alone(network: Network, name: str) -> None:
    verdict = verify(Broken(network, SEEN[name], BUNDLED))
    cause = name.partition("/")[0]
    assert verdict.causes + verdict.notes == (() if name == "ok" else (cause,))
    assert verdict.cause in ("ok", cause)
    assert verdict.not_excluded == ()
    # Any length is right for a runtime; other clients of its server are told.
    assert verdict.ok == (name in ("ok", "not_normalised"))


def test_the_golden_values_are_those_of_the_network(network: Network) -> None:
    assert GOLDEN is not None
    assert set(GOLDEN.answers) == set(FAULTS) - UNSEEN
    for fault, own in GOLDEN.answers.items():
        texts = {probe.name: probe.prompted(BUNDLED.prompts) for probe in probes()}
        for name, golden in own.items():
            (vector,) = Broken(network, FAULTS[fault], BUNDLED).vectors([texts[name]])
            # They are stored in 16 bits.
            assert np.abs(compared(vector) - golden).max() < 1e-3, (fault, name)
            if fault == "ok":
                assert np.abs(vector - GOLDEN.complete[name]).max() < 1e-3, name


@pytest.mark.parametrize(
    ("runtime", "precision"),
    [
        (lambda: bundled_runtime("onnx"), "float32"),
        (lambda: bundled_runtime("transformers"), "float32"),
        (lambda: OnnxRuntime("bundled", precision="int8"), "8 bits"),
    ],
)
def test_the_runtimes_are_ok(runtime: Callable[[], Runtime], precision: str) -> None:
    verdict = verify(runtime())
    assert verdict.ok, str(verdict)
    assert verdict.precision == precision


def test_a_cause_has_a_remedy_and_a_fault_that_shows_it() -> None:
    made = {name.partition("/")[0] for name in FAULTS | OTHER_FAULTS} - {"ok"}
    assert made <= set(CAUSES)
    assert all(cause.what and cause.remedy for cause in CAUSES.values())


class Own(Runtime):
    """A runtime of one's own on another one, with its answers changed."""

    def __init__(
        self, change: Callable[[list[Any]], Any], model: Model = BUNDLED, *, lists: bool = False
    ) -> None:
        self._change, self._model, self._lists = change, model, lists

    @property
    def model(self) -> Model:
        return self._model

    @property
    def identity(self) -> Identity:
        return Identity(self._model.name, "own", "1", "own", "float32", 2048)

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        vectors: list[Any] = [None] * len(texts)
        for batch in bundled_runtime().embed(texts, truncate=truncate):
            assert isinstance(batch, Batch)
            for row, vector in zip(batch.rows, np.asarray(batch.vectors), strict=True):
                vectors[row] = vector.tolist()
        yield from self._change(vectors)


def whole(change: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Batch]]:
    def changed(vectors: list[Any]) -> list[Batch]:
        new = change(vectors)
        return [Batch(range(len(new)), new)]

    return changed


calls: list[int] = []


def unlike_before(vectors: list[Any]) -> list[Any]:
    calls.append(1)
    return [[*vector[1:], vector[0]] for vector in vectors] if len(calls) > 12 else vectors


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (whole(lambda vectors: vectors), "ok"),
        (whole(lambda vectors: [["x"] * 768 for _ in vectors]), "not_finite"),
        (whole(lambda vectors: [None for _ in vectors]), "not_finite"),
        (whole(lambda vectors: [[1e300] * 768 for _ in vectors]), "not_finite"),
        (whole(lambda vectors: vectors[::-1]), "order"),
        (whole(lambda vectors: vectors[1:] + vectors[:1]), "order"),
        (whole(lambda vectors: [list(np.roll(v, len(vectors) - 1)) for v in vectors]), "batch"),
        (whole(lambda vectors: vectors[:-1]), "rows"),
        (whole(lambda vectors: [*vectors, vectors[0]]), "rows"),
        (lambda vectors: [Batch([-5], vectors[:1])], "rows"),
        (lambda vectors: [vectors], "rows"),
        (lambda vectors: [Batch(range(len(vectors)), None)], "rows"),
        (lambda vectors: [TooLong(0, 999)], "too_short_context"),
        (whole(lambda vectors: [vector[:300] for vector in vectors]), "width"),
        (whole(lambda vectors: [[3 * x for x in vector] for vector in vectors]), "ok"),
        (whole(unlike_before), "not_repeatable"),
        (whole(lambda vectors: [vector[::-1] for vector in vectors]), "another_model"),
    ],
)
def test_wrong_answers_are_reported_and_not_raised(
    change: Callable[[list[Any]], Any], cause: str
) -> None:
    calls.clear()
    assert verify(Own(change)).cause == cause


def test_a_cut_is_named_even_if_it_is_normalised() -> None:
    def cut(vectors: list[Any]) -> list[Any]:
        narrow = np.array(vectors)[:, :128]
        return list(narrow / np.linalg.norm(narrow, axis=1, keepdims=True))

    assert verify(Own(whole(cut))).causes == ("cut",)


def test_truncation_at_a_length_without_golden_values_is_named(network: Network) -> None:
    verdict = verify(Broken(network, Fault(ids=lambda ids: ids[:400]), BUNDLED))
    assert verdict.causes == ("truncated",)


def test_two_faults_are_not_taken_for_one(network: Network) -> None:
    both = replace(FAULTS["no_bos"], dense=2, pool=FAULTS["pooling_last_token"].pool)
    assert not verify(Broken(network, both, BUNDLED)).ok


def test_a_model_without_golden_values_says_so() -> None:
    later = replace(BUNDLED, name="embeddinggemma-2")
    verdict = verify(Own(whole(lambda vectors: vectors), later))
    assert verdict.causes == ("no_golden_values",)
    assert not verdict.ok
    assert verify(Own(whole(lambda vectors: vectors[::-1]), later)).cause == "order"


def test_another_model_is_named(fake: FakeRuntime) -> None:
    verdict = verify(OnlyRenamed(fake))
    assert verdict.cause == "another_model"


class OnlyRenamed(FakeRuntime):
    """Arbitrary vectors under the bundled model's name."""

    def __init__(self, fake: FakeRuntime) -> None:
        super().__init__(fake.max_tokens)

    @property
    def model(self) -> Model:
        return BUNDLED


@pytest.mark.parametrize(
    "embed", [lambda text: [float("nan")] * 768, lambda text: [0.0] * 768], ids=["nan", "zeros"]
)
def test_a_server_that_overflows_is_named(embed: Callable[[str], list[float]]) -> None:
    with OllamaServer([ServedModel(embed=embed)]) as server:
        assert verify(OllamaRuntime(host=server.url)).cause == "not_finite"


def test_a_runtimes_own_error_is_not_swallowed() -> None:
    def fail(vectors: list[Any]) -> list[Any]:
        raise ValueError("a defect of the runtime")

    with pytest.raises(ValueError, match="a defect of the runtime"):
        verify(Own(fail))


def test_nan_in_lists_alone_is_named() -> None:
    def overflow(vectors: list[Any]) -> list[Any]:
        return vectors if len(vectors) == 1 else [[float("nan")] * 768, *vectors[1:]]

    assert verify(Own(whole(overflow))).causes == ("batch",)


def test_no_server_is_an_error() -> None:
    with pytest.raises(ConnectionFailed):
        verify(OllamaRuntime(host="http://127.0.0.1:1", max_retries=0))


def test_nothing_that_is_shown_has_a_text(network: Network) -> None:
    verdict = verify(Broken(network, FAULTS["no_prompt"], BUNDLED))
    shown = f"{verdict}{verdict!r}{json.dumps(verdict.as_dict())}"
    assert not [probe.name for probe in probes() if len(probe.text) > 8 and probe.text in shown]


def test_the_command_says_ok_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "onnx", "--model", "bundled"]) == 0
    assert capsys.readouterr().out.startswith("gemma-embed-bundled: ok\nprecision: float32")


def test_the_command_names_cause_and_remedy_and_exits_with_1(
    network: Network, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(network, FAULTS["no_prompt"], BUNDLED)
    monkeypatch.setattr(named, "open_runtime", lambda settings: broken)
    assert cli.main(["verify", "onnx"]) == 1
    out = capsys.readouterr().out
    assert "cause: no_prompt (" in out
    assert f"remedy: {CAUSES['no_prompt'].remedy}" in out
    assert cli.main(["verify", "onnx", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["runtime"]
    assert found["ok"] is False
    assert found["causes"][0]["name"] == "no_prompt"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["./nowhere"], 2, "no runtime, address, .gguf file or folder"),
        (["bundled", "--model", "x"], 2, "--model needs"),
        (["onnx", "--precision", "float16"], 2, "float16"),
        (["onnx:float16"], 2, "float16"),
        (["./nowhere:int8"], 2, "no runtime, address, .gguf file or folder"),
        (["onnx:int8", "--precision", "int4"], 2, "are one setting"),
        (["ollama:a-tag", "--model", "another"], 2, "are one setting"),
        (["a.gguf", "--model", "b.gguf"], 2, "are one setting"),
        (["bundled", "--collection", "x"], 2, "--chroma"),
        (["http://127.0.0.1:1"], 1, "cannot connect to the Ollama server"),
        (["http://127.0.0.1:1/v1"], 1, "ConnectionFailed"),
    ],
)
def test_a_wrong_call_is_one_line(
    arguments: list[str],
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["verify", *arguments]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.weights
@pytest.mark.timeout(900)
@pytest.mark.skipif("GEMMA_EMBED_WEIGHTS" not in os.environ, reason="needs real weights")
@pytest.mark.parametrize(
    ("text", "cause"),
    [("ok", "ok"), *((name, name) for name in ("no_prompt", "space_before", "title_dropped"))],
)
def test_the_real_weights(text: str, cause: str) -> None:
    runtime = TransformersRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], device="cpu")

    class Altered(Own):
        def embed(
            self, texts: Sequence[str], *, truncate: bool = False
        ) -> Iterator[Batch | TooLong]:
            yield from runtime.embed([FAULTS[text].text(each) for each in texts])

    verdict: Verdict = verify(Altered(lambda vectors: vectors, runtime.model))
    assert verdict.cause == cause
    assert verdict.not_excluded == ()
    assert verdict.precision == "float32"


@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_vectors_whose_beginning_says_nothing_are_not_ok(value: float) -> None:
    # Only the first numbers are compared.
    verdict = verify(Own(whole(lambda vectors: [[value] * 64 + one[64:] for one in vectors])))
    assert not verdict.ok


@pytest.mark.parametrize("kept", [256, 512, 767])
def test_vectors_that_were_cut_and_filled_up_are_not_ok(kept: int) -> None:
    zeros = [0.0] * (768 - kept)
    verdict = verify(Own(whole(lambda vectors: [one[:kept] + zeros for one in vectors])))
    assert verdict.causes == ("cut",)


@pytest.mark.parametrize(
    "change",
    [
        lambda vector: vector[:64] + [-number for number in vector[64:]],
        lambda vector: vector[:64] + vector[:63:-1],
        lambda vector: vector[:512] + vector[:256],
        lambda vector: [*vector[:-1], 0.5],
    ],
    ids=["signs", "order", "repeated", "one"],
)
def test_wrong_numbers_after_those_of_the_golden_values_are_not_ok(
    change: Callable[[list[float]], list[float]],
) -> None:
    verdict = verify(Own(whole(lambda vectors: [change(one) for one in vectors])))
    assert verdict.causes == ("later_numbers",)


def test_a_runtime_is_named_with_its_precision_or_tag(tmp_path: Path) -> None:
    assert named.opened("onnx:int8", "bundled").settings["precision"] == "int8"
    assert named.opened("bundled:bfloat16").settings["dtype"] == "bfloat16"
    assert named.opened("ollama:embeddinggemma:300m").settings["model"] == "embeddinggemma:300m"
    folder = tmp_path / "a:b"
    folder.mkdir()
    assert named.opened(str(folder)).settings["model"] == str(folder)
    assert named.opened(f"{folder}:bfloat16").settings["dtype"] == "bfloat16"


def test_the_model_of_several_runtimes_is_for_those_in_this_process(tmp_path: Path) -> None:
    names = ["onnx", "onnx:int8", "ollama", str(tmp_path), "http://127.0.0.1:1", "bundled"]
    opened = named.opened_all(names, "bundled")
    assert list(opened) == names
    assert opened["onnx"].settings["model"] == opened["onnx:int8"].settings["model"] == "bundled"
    assert opened["ollama"].settings["model"] != "bundled"
    assert opened[str(tmp_path)].settings["model"] == str(tmp_path)
    for call in (
        lambda: named.opened_all(["gguf", "onnx"], "bundled"),
        lambda: named.opened("gguf", "./folder"),
        lambda: named.opened("gguf"),
    ):
        with pytest.raises(ConfigurationError, match=r"name the \.gguf file itself in place of"):
            call()
    assert isinstance(named.opened("gguf", "./a.gguf"), GgufRuntime)
    with pytest.raises(ConfigurationError, match="--model is for a runtime in this process"):
        named.opened_all(["bundled", "ollama"], "./folder")
