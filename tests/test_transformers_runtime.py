"""The in-process runtime: refused models, threads and processes."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import pickle
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gemma_embed import Embedder
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    MissingDependency,
    ModelCorrupt,
    ModelNotFound,
    WrongModel,
)
from gemma_embed.runtimes import TransformersRuntime
from gemma_embed.runtimes.transformers import network


@pytest.fixture
def copied(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


def embed(folder: Path | str, **options: str) -> np.ndarray:
    return Embedder(TransformersRuntime(folder, device="cpu", **options)).embed(["a"])


Damage = Callable[[Path], object]


def _modules(folder: Path, keep: Callable[[dict[str, str]], bool]) -> None:
    path = folder / "modules.json"
    checkpoints.write_json(path, [m for m in json.loads(path.read_text()) if keep(m)])


def _retype(folder: Path, kind: str) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[2]["type"] = kind
    checkpoints.write_json(path, modules)


def _move(folder: Path, place: str) -> None:
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[2]["path"] = place
    checkpoints.write_json(path, modules)


def _no_specials(folder: Path) -> None:
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    state["post_processor"] = None
    path.write_text(json.dumps(state))
    checkpoints.edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        add_bos_token=False,
        add_eos_token=False,
    )


def _drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["layers.2.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def _truncate(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


REFUSED: dict[str, tuple[Damage, type[Exception], str]] = {
    "another architecture": (
        lambda f: checkpoints.edit_json(f / "config.json", model_type="bert"),
        WrongModel,
        "'bert' model",
    ),
    "a text generator": (
        lambda f: checkpoints.edit_json(f / "config.json", use_bidirectional_attention=False),
        WrongModel,
        "causal attention",
    ),
    "a halved window": (
        lambda f: checkpoints.edit_json(f / "config.json", sliding_window=257),
        WrongModel,
        "sliding_window: 257.*halve.*512",
    ),
    "a twice halved window": (
        lambda f: checkpoints.edit_json(f / "config.json", sliding_window=129),
        WrongModel,
        "sliding_window: 129",
    ),
    "no modules": (lambda f: (f / "modules.json").unlink(), WrongModel, "no modules.json"),
    "no Dense layers": (
        lambda f: _modules(f, lambda m: "Dense" not in m["type"]),
        WrongModel,
        "0 Dense layers.*has 2",
    ),
    "one Dense layer": (
        lambda f: _modules(f, lambda m: m["path"] != "3_Dense"),
        WrongModel,
        "1 Dense layers.*has 2",
    ),
    "no normalisation": (
        lambda f: _modules(f, lambda m: "Normalize" not in m["type"]),
        WrongModel,
        "chains",
    ),
    "a module of its own": (lambda f: _retype(f, "evil.Dense"), WrongModel, "'evil.Dense'"),
    "a module by a like name": (
        lambda f: _retype(f, "sentence_transformers.models.LSTM"),
        WrongModel,
        "ever imported",
    ),
    "a path outside": (lambda f: _move(f, "../2_Dense"), WrongModel, "points outside"),
    "last-token pooling": (
        lambda f: checkpoints.edit_json(
            f / "1_Pooling/config.json",
            pooling_mode_mean_tokens=False,
            pooling_mode_lasttoken=True,
        ),
        WrongModel,
        "lasttoken",
    ),
    "a mean without the prompt": (
        lambda f: checkpoints.edit_json(f / "1_Pooling/config.json", include_prompt=False),
        WrongModel,
        "leaves the prompt out",
    ),
    "a Dense layer with an activation": (
        lambda f: checkpoints.edit_json(
            f / "2_Dense/config.json", activation_function="torch.nn.modules.activation.Tanh"
        ),
        WrongModel,
        "Tanh",
    ),
    "another width": (
        lambda f: checkpoints.edit_json(f / "3_Dense/config.json", out_features=512),
        WrongModel,
        "512 wide",
    ),
    "a tokenizer without BOS and EOS": (_no_specials, WrongModel, "<bos>"),
    "no tokenizer": (
        lambda f: (f / "tokenizer.json").unlink(),
        ModelCorrupt,
        "tokenizer.json is missing",
    ),
    "pickled weights": (_pickled, ModelCorrupt, "can run code"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelCorrupt, "no safetensors"),
    "no Dense weights": (
        lambda f: (f / "2_Dense/model.safetensors").unlink(),
        ModelCorrupt,
        "no safetensors",
    ),
    "a Git LFS pointer": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec"),
        ModelCorrupt,
        "git lfs pull",
    ),
    "half the weights": (
        lambda f: _truncate(f / "model.safetensors", 0.5),
        ModelCorrupt,
        "cannot be loaded",
    ),
    "a few bytes of weights": (
        lambda f: _truncate(f / "model.safetensors", 0.0001),
        ModelCorrupt,
        "truncated or damaged",
    ),
    "a missing tensor": (_drop_tensor, ModelCorrupt, r"lack .*1 tensors.*layers\.2\.mlp\.up_proj"),
    "a damaged config": (
        lambda f: (f / "config.json").write_text("{"),
        ModelCorrupt,
        "not readable JSON",
    ),
    "an empty folder": (lambda f: shutil.rmtree(f) or f.mkdir(), ModelNotFound, "no config.json"),
}


@pytest.mark.parametrize("damage", REFUSED)
def test_an_unsupported_checkpoint_is_refused(copied: Path, damage: str) -> None:
    change, kind, message = REFUSED[damage]
    change(copied)
    with pytest.raises(kind, match=message):
        embed(copied)


def test_a_transformers_version_with_causal_attention_is_refused(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Like an old version: the config says bidirectional, and the model ignores it.
    from transformers.models.gemma3 import configuration_gemma3

    real = configuration_gemma3.Gemma3TextConfig.__post_init__

    def causal(self: object, **kwargs: object) -> None:
        real(self, **kwargs)
        self.use_bidirectional_attention = False

    monkeypatch.setattr(configuration_gemma3.Gemma3TextConfig, "__post_init__", causal)
    with pytest.raises(WrongModel, match=r"causal attention.*pip install -U"):
        embed(narrow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "overflows"),
        ({"dtype": "int8"}, "must be 'float32' or 'bfloat16'"),
        ({"dtype": torch.float16}, "overflows"),
        ({"dtype": torch.half}, "overflows"),
        ({"dtype": "half"}, "overflows"),
        ({"dtype": torch.bfloat16}, "must be 'float32' or 'bfloat16'"),
        ({"dtype": torch.float32}, "must be 'float32' or 'bfloat16'"),
        ({"dtype": torch.float64}, "must be 'float32' or 'bfloat16'"),
    ],
)
def test_a_bad_option_is_refused_by_the_constructor(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TransformersRuntime(**options)


@pytest.mark.parametrize("device", ["cuda:9", "nonsense"])
def test_a_missing_device_is_refused(narrow: Path, device: str) -> None:
    runtime = TransformersRuntime(narrow, device=device)
    with pytest.raises(ConfigurationError, match="cannot be used by this build"):
        Embedder(runtime).embed(["a"])


def test_a_revision_for_a_folder_is_refused(narrow: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a folder"):
        embed(narrow, revision="main")


@pytest.mark.parametrize("model", ["./nowhere", "/no/such/folder", "just-a-name", "a/b/c"])
def test_a_missing_folder_is_named(model: str) -> None:
    with pytest.raises(ModelNotFound, match="neither an existing folder nor a hub id"):
        embed(model)


def test_missing_packages_are_named_with_the_install_command(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(MissingDependency, match=r'pip install "gemma-embed\[transformers\]"'):
        embed(narrow)


def test_nothing_is_loaded_before_the_first_text(tmp_path: Path) -> None:
    embedder = Embedder(TransformersRuntime(tmp_path / "not there"))
    assert embedder.embed([]).shape == (0, 768)


def test_a_nan_vector_names_its_text(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    poisoned = TransformersRuntime(copied, device="cpu")
    token = poisoned._load().tokenize(["☠"])[0][1]
    weights["embed_tokens.weight"][token] = float("nan")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    runtime = TransformersRuntime(copied, device="cpu")
    with pytest.raises(BadResponse, match="NaN or infinity") as caught:
        Embedder(runtime).embed(["a", "bb", "☠", "c"])
    assert caught.value.index == 2


def test_special_tokens_in_a_text_are_text(local: TransformersRuntime) -> None:
    plain, special = local.count_tokens(["x", "x<eos><bos>"])
    assert special > plain + 2


def test_a_fine_tunes_prompts_are_used_and_logged(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = checkpoints.PROMPTS | {"query": "ask: "}
    checkpoints.edit_json(copied / "config_sentence_transformers.json", prompts=own)
    tuned = Embedder(TransformersRuntime(copied, device="cpu"))
    with caplog.at_level(logging.WARNING, "gemma_embed"):
        vector = tuned.embed_query("x")
    assert "its own prompts for query" in caplog.text
    assert tuned.runtime.prompts.prefix("query") == "ask: "
    stock = Embedder(TransformersRuntime(copied, device="cpu"))
    (raw,) = stock.runtime.embed(["ask: x"])
    np.testing.assert_allclose(vector, raw.vectors[0], atol=1e-6)


def test_a_fine_tunes_prompts_are_in_the_fingerprint(narrow: Path, copied: Path) -> None:
    own = checkpoints.PROMPTS | {"document": "title: none | passage: "}
    checkpoints.edit_json(copied / "config_sentence_transformers.json", prompts=own)
    stock, tuned = (Embedder(TransformersRuntime(folder)) for folder in (narrow, copied))
    assert stock.runtime.identity.revision == tuned.runtime.identity.revision
    assert stock.fingerprint != tuned.fingerprint


def test_the_revision_names_the_weights(narrow: Path, copied: Path) -> None:
    before = TransformersRuntime(narrow).identity.revision
    assert TransformersRuntime(copied).identity.revision == before
    dense = copied / "3_Dense/model.safetensors"
    save_file({"linear.weight": load_file(dense)["linear.weight"] * 1.01}, dense)
    assert TransformersRuntime(copied).identity.revision != before


@pytest.mark.parametrize("shared", [copy.copy, copy.deepcopy])
def test_copies_share_the_loaded_model(
    local: TransformersRuntime, shared: Callable[[TransformersRuntime], TransformersRuntime]
) -> None:
    assert shared(local) is local


def test_a_pickle_contains_settings_but_not_weights(local: TransformersRuntime) -> None:
    expected = Embedder(local).embed(["a"])
    data = pickle.dumps(local)
    assert len(data) < 20_000
    again = pickle.loads(data)
    assert again.settings == local.settings
    np.testing.assert_allclose(Embedder(again).embed(["a"]), expected, atol=1e-6)


def _embed_in_child(embedder: Embedder) -> np.ndarray:
    return embedder.embed(["a", "b"])


def test_a_spawned_process_gives_the_same_vectors(local: TransformersRuntime) -> None:
    embedder = Embedder(local, dimensions=128)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(_embed_in_child, embedder).result()
    np.testing.assert_allclose(theirs, embedder.embed(["a", "b"]), atol=1e-6)


def test_threads_get_the_same_vectors_as_one(narrow: Path) -> None:
    runtime = TransformersRuntime(narrow, device="cpu")
    embedder = Embedder(runtime)
    start = threading.Barrier(8)
    texts = [[f"text {i} {j}" * (j + 1) for j in range(5)] for i in range(8)]

    def work(i: int) -> np.ndarray:
        start.wait()
        return embedder.embed(texts[i])

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    for result, mine in zip(results, texts, strict=True):
        np.testing.assert_allclose(result, Embedder(runtime).embed(mine), atol=1e-6)


def test_the_model_is_loaded_once(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []
    real = network._backbone
    monkeypatch.setattr(network, "_backbone", lambda *args: loads.append(1) or real(*args))
    embedder = Embedder(TransformersRuntime(narrow, device="cpu"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: embedder.embed([f"{i}"]), range(6)))
    assert len(loads) == 1


def test_loading_prints_nothing(narrow: Path, capfd: pytest.CaptureFixture[str]) -> None:
    embed(narrow)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
