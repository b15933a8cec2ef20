"""EmbeddingGemma 2's text part: the same vectors as sentence-transformers in the real class."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import second_checkpoint
import torch
from ollama_model import ServedModel
from ollama_server import OllamaServer
from sentence_transformers import SentenceTransformer
from transformers import EmbeddingGemma2Model

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, check_collection
from gemma_embed.errors import (
    CollectionMismatch,
    ConfigurationError,
    InputTooLong,
    MissingDependency,
    WrongModel,
)
from gemma_embed.models import EMBEDDINGGEMMA_2, EMBEDDINGGEMMA_300M
from gemma_embed.prompts import TASKS
from gemma_embed.runtimes import OllamaRuntime, OnnxRuntime, TransformersRuntime
from gemma_embed.verify import verify

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
SHORT = ["", "Mars is red.", "中文 العربية 😀", "the sea at night " * 20]
# Somewhat and far beyond the 512 tokens that a token sees to either side in layers with a window.
LONG = [" ".join(WORDS[:count]) for count in (300, 400, 1200)]
DOCUMENT = "title: none | text: "


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return second_checkpoint.build(tmp_path_factory.mktemp("alone"), towers=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return second_checkpoint.build(tmp_path_factory.mktemp("published"))


@pytest.fixture(scope="module")
def runtime(published: Path) -> TransformersRuntime:
    return TransformersRuntime(published, device="cpu")


@pytest.fixture(scope="module")
def reference(alone: Path) -> SentenceTransformer:
    # With towers it wants an image processor, and so torchvision, also for texts.
    options = {"dtype": torch.float32}
    return SentenceTransformer(
        str(alone), device="cpu", local_files_only=True, model_kwargs=options
    )


def expected(reference: SentenceTransformer, texts: list[str]) -> np.ndarray:
    # One by one: padded to a long text, its own vectors move by 1e-5.
    return reference.encode(texts, prompt="", normalize_embeddings=True, batch_size=1)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_width(
    runtime: TransformersRuntime, reference: SentenceTransformer, task: str
) -> None:
    assert runtime.model == EMBEDDINGGEMMA_2
    stated = second_checkpoint.PROMPTS[EMBEDDINGGEMMA_2.prompt_keys[task]]
    assert EMBEDDINGGEMMA_2.prompts.prefix(task) == stated
    complete = expected(reference, [stated + text for text in SHORT])
    for dimensions in (768, 512, 256, 128):
        cut = complete[:, :dimensions]
        cut = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        vectors = Embedder(runtime, dimensions=dimensions).embed(SHORT, task)
        np.testing.assert_allclose(vectors, cut, atol=1e-5)


def test_texts_beyond_the_window(
    runtime: TransformersRuntime, reference: SentenceTransformer
) -> None:
    prompted = [DOCUMENT + text for text in SHORT + LONG]
    counts = runtime.count_tokens(prompted)
    assert counts == [len(reference.tokenizer(text)["input_ids"]) for text in prompted]
    assert 513 < sorted(counts)[-3] < 1025 < max(counts)
    vectors = Embedder(runtime).embed(SHORT + LONG)
    np.testing.assert_allclose(vectors, expected(reference, prompted), atol=1e-5)


def composite(folder: Path, text: str, window: int) -> np.ndarray:
    """The vector of a text by the class of all towers, with another window."""
    model = EmbeddingGemma2Model.from_pretrained(folder, dtype=torch.float32)
    model.language_model.config.sliding_window = window
    ids = torch.tensor(TransformersRuntime(folder)._load().tokenize([text]))
    with torch.inference_mode():
        mean = model(input_ids=ids).last_hidden_state[0].mean(0)
    return torch.nn.functional.normalize(mean, dim=0).numpy()


def test_towers_change_no_text_and_the_window_does(
    runtime: TransformersRuntime, published: Path
) -> None:
    own = Embedder(runtime).embed(LONG[-1:])[0]
    np.testing.assert_allclose(composite(published, DOCUMENT + LONG[-1], 512), own, atol=1e-5)
    for window in (511, 513):
        other = composite(published, DOCUMENT + LONG[-1], window)
        assert np.abs(other - own).max() > 1e-4


def test_bfloat16_is_as_close_as_the_references(
    published: Path, alone: Path, runtime: TransformersRuntime
) -> None:
    options = {"dtype": torch.bfloat16}
    theirs = expected(
        SentenceTransformer(str(alone), device="cpu", local_files_only=True, model_kwargs=options),
        [DOCUMENT + text for text in SHORT],
    )
    exact = Embedder(runtime).embed(SHORT)
    narrow = Embedder(TransformersRuntime(published, device="cpu", dtype="bfloat16")).embed(SHORT)
    distances = [np.linalg.norm(vectors - exact, axis=1) for vectors in (narrow, theirs)]
    assert 0 < distances[0].mean() <= 1.2 * distances[1].mean()


def test_8192_tokens_are_read_and_no_more(runtime: TransformersRuntime) -> None:
    text = "a " * 8192
    with pytest.raises(InputTooLong) as caught:
        Embedder(runtime).embed(["b", text])
    assert (caught.value.index, caught.value.limit) == (1, 8192)
    assert runtime.identity.max_tokens == 8192


def test_another_window_is_refused(published: Path, tmp_path: Path) -> None:
    other = shutil.copytree(published, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["sliding_window"] = 1024
    checkpoints.write_json(other / "config.json", config)
    with pytest.raises(WrongModel, match=r"sliding_window: 1024, embeddinggemma-2 was .* 512"):
        Embedder(TransformersRuntime(other)).embed(["a"])


def test_a_projection_of_another_width_is_refused(alone: Path, tmp_path: Path) -> None:
    other = shutil.copytree(alone, tmp_path / "other")
    checkpoints.edit_json(other / "config.json", embedding_dim=512)
    with pytest.raises(WrongModel, match="are 512 wide, those of embeddinggemma-2 768"):
        Embedder(TransformersRuntime(other)).embed(["a"])


def test_a_version_of_transformers_without_the_class_is_named(
    alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setitem(transformers.__dict__, "EmbeddingGemma2TextModel", None)
    with pytest.raises(MissingDependency, match=r"transformers 5\.19 or later.*pip install -U"):
        Embedder(TransformersRuntime(alone)).embed(["a"])


@pytest.mark.parametrize("name", ["google/embeddinggemma-2-270m", "google/EmbeddingGemma-2-740M"])
@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_a_wrong_id_that_circulates_is_an_error_with_the_right_one(name: str, kind: type) -> None:
    with pytest.raises(ConfigurationError, match="the model is google/embeddinggemma-2, of which"):
        kind(name)


@pytest.mark.parametrize(
    "name", ["google/embeddinggemma-2", "onnx-community/embeddinggemma-2-ONNX"]
)
def test_a_right_id_decides_the_row(name: str) -> None:
    assert OnnxRuntime(name).model == EMBEDDINGGEMMA_2


def test_onnx_takes_the_published_graph_only(
    alone: Path, published: Path, reference: SentenceTransformer, tmp_path: Path
) -> None:
    for model in (published, "google/embeddinggemma-2"):
        with pytest.raises(
            WrongModel, match=r"OnnxRuntime\('onnx-community/embeddinggemma-2-ONNX'"
        ):
            Embedder(OnnxRuntime(model)).embed(["a"])
    folder = second_checkpoint.publish(alone, published, tmp_path / "graph")
    runtime = OnnxRuntime(folder)
    assert runtime.model == EMBEDDINGGEMMA_2
    texts = SHORT + LONG
    vectors = Embedder(runtime).embed(texts)
    np.testing.assert_allclose(
        vectors, expected(reference, [DOCUMENT + text for text in texts]), atol=1e-5
    )


def test_verify_says_that_it_has_no_golden_values(runtime: TransformersRuntime) -> None:
    verdict = verify(runtime)
    assert not verdict.ok
    assert verdict.causes == ("no_golden_values",)
    assert "make them from its weights" in str(verdict)


def test_two_models_in_one_folder(
    runtime: TransformersRuntime, local: TransformersRuntime, tmp_path: Path
) -> None:
    embedders = [Embedder(local), Embedder(runtime)]
    first, second = (ChromaIndex(tmp_path / "index", "notes", each) for each in embedders)
    first.ingest([{"text": "Mars is red.", "metadata": {"source": "a"}}])
    second.ingest([{"text": text, "metadata": {"source": text}} for text in SHORT[1:]])
    assert first.collection_name != second.collection_name
    assert [index.open().count() for index in (first, second)] == [1, 3]
    # Both have 768 numbers: Chroma itself would search either with either.
    for index, other in ((first, embedders[1]), (second, embedders[0])):
        with pytest.raises(CollectionMismatch, match="model"):
            check_collection(index.open(), other)
    assert {generation.rows for generation in second.generations()} == {1, 3}


def test_a_tag_decides_the_row() -> None:
    for tag in ("embeddinggemma-2", "embeddinggemma-2:270m", "embeddinggemma-2:270m-q8_0-text"):
        assert OllamaRuntime(tag).model == EMBEDDINGGEMMA_2
    assert OllamaRuntime("embeddinggemma:300m").model == EMBEDDINGGEMMA_300M


# What such a server calls architecture and width is unverified: neither may be a reason to refuse.
SERVED = ServedModel(
    name="embeddinggemma-2:270m-bf16-text",
    architecture="anything",
    context=262144,
    tensors=("language_model.embed_tokens.weight",),
)


@pytest.mark.parametrize(("level", "warned"), [("BF16", False), ("nvfp4", True)])
def test_ollama(level: str, warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = replace(SERVED, quantization=level)
    with OllamaServer([model], version="0.40.2") as server:
        embedder = Embedder(OllamaRuntime(model.name, host=server.url))
        assert embedder.embed(["a"], "summarization").shape == (1, 768)
        assert server.texts == ["task: sentence similarity | query: a"]
        assert embedder.runtime.identity.max_tokens == 8192
    messages = [record.getMessage() for record in caplog.records]
    assert any("4 bits (NVFP4" in message for message in messages) == warned


def test_an_ollama_server_that_is_too_old_is_refused() -> None:
    with OllamaServer([SERVED], version="0.33.0") as server:
        embedder = Embedder(OllamaRuntime(SERVED.name, host=server.url))
        with pytest.raises(WrongModel, match=r"0\.33\.0 .* too old .* update it to 0\.40"):
            embedder.embed(["a"])
