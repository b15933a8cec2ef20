"""Values passed as a runtime or an option, and the errors for wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes import (
    Batch,
    OllamaRuntime,
    OnnxRuntime,
    Runtime,
    TransformersRuntime,
    open_runtime,
    reject_unknown,
    runtime_settings,
)
from gemma_embed.runtimes.named import RUNTIMES


class Mine(Runtime):
    """A custom runtime that loads when it is looked at."""

    model = EMBEDDINGGEMMA_300M

    @property
    def identity(self) -> Identity:
        raise AssertionError("loaded")

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch]:
        yield Batch(range(len(texts)), [[1.0] * 768] * len(texts))


class Wrapper:
    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_name_opens_its_runtime(name: Any) -> None:
    runtime = open_runtime(name)
    assert type(runtime) is RUNTIMES[name]
    again = open_runtime(runtime_settings(runtime))
    assert again.settings == runtime.settings


def test_a_runtime_object_is_used_unchanged() -> None:
    for runtime in (FakeRuntime(), Mine(), OnnxRuntime("bundled")):
        assert open_runtime(runtime) is runtime  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="give it to the runtime"):
        open_runtime(Mine(), "bundled")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OllamaRuntime, r"the class OllamaRuntime.*OllamaRuntime\(\)"),
        (lambda: Mine, r"the class Mine.*Mine\(\)"),
        (lambda: None, "runtime is None, not a runtime"),
        (lambda: 5, "runtime is a int, not a runtime: it lacks model"),
        (lambda: ["onnx"], "runtime is a list, not a runtime"),
        (lambda: Embedder(FakeRuntime()), r"is a Embedder, not a runtime; pass its \.runtime"),
        (
            lambda: Wrapper(Embedder(FakeRuntime())),
            r"is a Wrapper, not a runtime; pass its \.embedder\.runtime",
        ),
        (lambda: {"runtime": ["x"]}, r"unknown runtime \['x'\]; use 'transformers' or"),
        (lambda: {}, "unknown runtime None"),
        (lambda: "Onnx", "unknown runtime 'Onnx'; use 'transformers' or 'onnx' or 'ollama'"),
        (lambda: "google/embeddinggemma-300m", "model='google/embeddinggemma-300m', or Trans"),
        (lambda: "/data/model", r"model='/data/model', or TransformersRuntime\('/data/model'\)"),
        (lambda: Path("/data/model"), "model='/data/model'"),
        (lambda: "~/model", "model='~/model'"),
        (lambda: "bundled", "model='bundled'"),
        (lambda: "embeddinggemma:300m", "runtime='ollama', model='embeddinggemma:300m'"),
        (lambda: "embeddinggemma", "runtime='ollama', model='embeddinggemma'"),
    ],
)
def test_a_value_that_is_not_a_runtime_is_an_error_with_the_right_call(
    make: Callable[[], Any], message: str
) -> None:
    given = make()
    for opens in (open_runtime, Embedder):
        with pytest.raises(ConfigurationError, match=message):
            opens(given)


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("device", r"pass TransformersRuntime\(device=...\) as the runtime"),
        ("precision", r"OnnxRuntime\(precision=...\)"),
        ("host", r"OllamaRuntime\(host=...\)"),
        ("base_url", r"OllamaRuntime\(host=...\)"),
        ("revision", r"TransformersRuntime\(revision=...\) or OnnxRuntime\(revision=...\)"),
        ("model_kwargs", "device=, dtype= or revision= to TransformersRuntime"),
        ("query_instruction", "query_task="),
        ("encode_kwargs", "query_task="),
        ("show_progress", "progress=True"),
        ("dimensions", "give it to Embedder, GemmaEmbeddings or GemmaEmbedding"),
        ("model_name", "say model="),
        ("colour", "unknown"),
    ],
)
def test_an_unknown_option_is_an_error_that_says_where_it_belongs(option: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Here does not take {option} .*{advice}") as e:
        reject_unknown({option: "hf_canary"}, "Here")
    assert "canary" not in str(e.value)


def test_each_runtime_names_the_options_it_does_not_take() -> None:
    with pytest.raises(ConfigurationError, match=r"TransformersRuntime does not take host"):
        TransformersRuntime(host="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"OnnxRuntime does not take device, dtype"):
        OnnxRuntime(device="cpu", dtype="x")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"runtime 'onnx' does not take device"):
        open_runtime({"runtime": "onnx", "device": "cpu"})


def test_an_error_inside_a_constructor_is_not_an_unknown_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(Mine):
        def __init__(self, model: str | None = None) -> None:
            raise TypeError("a fault of its own")

    monkeypatch.setitem(RUNTIMES, "broken", Broken)
    with pytest.raises(TypeError, match="a fault of its own"):
        open_runtime("broken")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="runtime 'broken' does not take speed"):
        open_runtime({"runtime": "broken", "speed": 1})
