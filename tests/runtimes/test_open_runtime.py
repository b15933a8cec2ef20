"""Values passed as a runtime or an option, and the errors for wrong ones."""

from __future__ import annotations

import re
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
from gemma_embed.runtimes.unknown_options import _OTHER_NAMES, options_of
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles


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
    # There is no file that it could load by default.
    runtime = open_runtime(name, "a.gguf" if name == "gguf" else None)
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
        (lambda: "Onnx", "unknown runtime 'Onnx'; use 'transformers' or 'onnx' or 'gguf'"),
        (
            lambda: "google/embeddinggemma-300m",
            r"runtime='onnx' or 'transformers' with model='google/embeddinggemma-300m'",
        ),
        (
            lambda: "/data/model",
            r"OnnxRuntime\('/data/model'\) or TransformersRuntime\('/data/model'\)",
        ),
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
        ("encode_kwargs", "prompts are built in and vectors have norm 1; leave it out"),
        ("task", r"query_task= or document_task=.*for_task\(\)"),
        ("torch_dtype", r"TransformersRuntime\(dtype=...\)"),
        ("api_key", r"OllamaRuntime\(headers=...\)"),
        ("dimension", "give dimensions= to Embedder, GemmaEmbeddings or GemmaEmbedding"),
        ("devise", r"did you mean device=\? pass TransformersRuntime\(device=...\)"),
        ("cache_dir", "HF_HOME names the folder of downloads"),
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


@pytest.mark.parametrize(
    ("call", "advice"),
    [
        (
            lambda: Embedder("ollama", base_url="x"),
            r"pass OllamaRuntime\(host=...\) or OpenAIRuntime\(host=...\) as the runtime",
        ),
        (lambda: Embedder("ollama", dimension=256), "say dimensions="),
        (lambda: Embedder("ollama", overlog="split"), "did you mean overlong="),
        (lambda: GemmaEmbeddings("bundled", show_progress=True), "say progress=True"),
        (lambda: GemmaEmbeddings("bundled", colour=1), "unknown; leave it out"),
        (lambda: OllamaRuntime(base_url="x"), "say host="),
        (lambda: OllamaRuntime(hots="x"), "did you mean host="),
        (lambda: TransformersRuntime(torch_dtype="x"), "say dtype="),
        (lambda: TransformersRuntime(cache_dir="x"), "HF_HOME names the folder of downloads"),
        (lambda: OnnxRuntime(local_files_only=True), "say offline=True"),
        (lambda: GemmaEmbedding("bundled", progress=True), r"say show_progress=True to from_docu"),
        (lambda: GemmaEmbedding("bundled", show_progress_bar=True), "say show_progress=True to"),
        (lambda: GemmaTitles(title="x"), "say title_key="),
    ],
)
def test_the_advice_is_one_that_the_refusing_class_follows(
    call: Callable[[], Any], advice: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"does not take .*{advice}"):
        call()


@pytest.mark.parametrize(
    "kind", [Embedder, GemmaEmbeddings, GemmaEmbedding, OllamaRuntime, OnnxRuntime, GemmaTitles]
)
def test_a_class_never_names_itself_as_the_place_of_an_option(kind: Any) -> None:
    names = {*_OTHER_NAMES, "progress", "dimensions", "host", "device", "precision"}
    for name in sorted(names - set(options_of(kind))):
        with pytest.raises(ConfigurationError, match="does not take") as caught:
            kind(**{name: 1})
        assert not re.search(rf"\b{kind.__name__}\b", str(caught.value).partition("(")[2]), name


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
