"""Which files a checkpoint is made of: found once, judged, and all that is ever loaded.

Two layouts exist (sentence-transformers 5, in which Google published, and 6, in which fine-tunes
are saved); both are plain JSON and safetensors. ``modules.json`` names classes; they are compared
with the family's, and nothing is ever imported from it. Other files in the folder are ignored,
except those that a library would pick up on its own: these are refused by name. A third layout is
a finished ONNX graph instead of weights, as onnx-community publishes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from gemma_embed.errors import ModelCorrupt, ModelNotFound, WrongModel
from gemma_embed.models import Model
from gemma_embed.runtimes.local.files import exists, read_json
from gemma_embed.runtimes.local.loading import loading, require
from gemma_fast.external_data import external_files

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_LFS_POINTER = b"version https://git-lfs"
_Files = tuple[Path, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's ``config.json``.

    Raises:
        ModelNotFound: If there is none; the message says what the folder holds instead.
        ModelCorrupt: If it is no JSON object.
    """
    if exists(folder / "config.json"):
        config: dict[str, Any] = read_json(folder / "config.json")
        return config
    if exists(folder / _ADAPTER):
        raise ModelNotFound(
            f"{folder} holds a LoRA adapter and no model: merge it into its model "
            "(merge_and_unload) and save that"
        )
    if any(folder.glob("*.gguf")):
        raise ModelNotFound(
            f"{folder} holds a GGUF file, which this runtime does not read: GgufRuntime takes the "
            "file, or get the safetensors files"
        )
    for path in folder.glob("*_Transformer/config.json"):
        raise ModelNotFound(_misplaced(folder, path.parent.name))
    raise ModelNotFound(f"{folder} holds no config.json, so it is not a model folder")


def check_whole(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that a checkpoint is neither a LoRA adapter nor quantised.

    Raises:
        WrongModel: If it is.
    """
    if exists(folder / _ADAPTER):
        raise WrongModel(
            f"{folder}/{_ADAPTER} is a LoRA adapter, which would be added to the weights "
            "wherever peft is installed. If it is merged into them already, delete "
            f"{_ADAPTER} and adapter_model.safetensors; if not, merge it "
            "(merge_and_unload) and save the result to an empty folder"
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise WrongModel(
            f"the weights in {folder} are quantised ({method or 'quantization_config'}); use "
            "the unquantised weights, and for speed OnnxRuntime(..., precision='int8')"
        )


def weight_files(folder: Path, pooled: object, model: Model) -> tuple[_Files, _Files]:
    """Find the weights of a checkpoint and judge what it says of itself.

    Args:
        folder: The checkpoint's.
        pooled: The numbers that its network gives for a token.
        model: The row that it should be.

    Returns:
        The safetensors files of the backbone, and that of each Dense layer, in order.

    Raises:
        ModelCorrupt: If a file is missing, damaged, or pickled.
        WrongModel: If its vectors would not be this model's.
    """
    modules = list(_modules(folder))
    _check_chain(folder, modules, model)
    _check_pooling(modules[1][1] / "config.json")
    dense = [place for kind, place in modules if kind == "Dense"]
    _check_dense(dense, pooled, folder, model)
    backbone, layers = _backbone(folder), tuple(place / _WEIGHTS for place in dense)
    for path in (*backbone, *layers):
        _check_weights(path)
    return backbone, layers


def graph_files(folder: Path, name: str) -> _Files:
    """Find a finished ONNX graph: its file, then the files that it reads its numbers from.

    Raises:
        ModelCorrupt: If one is missing or damaged.
        ModelNotFound: If the folder has no such graph.
        WrongModel: If it reads files outside its folder.
    """
    graph = folder / name
    if not graph.is_file():
        others = ", ".join(sorted(other.name for other in graph.parent.glob("*.onnx")))
        raise ModelNotFound(
            f"{folder} has no {name}, which this precision needs; its graphs: {others or 'none'}"
        )
    require("onnx", runtime="onnx")
    with loading(str(graph)):
        places = external_files(graph)
    for place in places:
        # As Windows reads it, which knows both separators and drives.
        path = PureWindowsPath(place)
        if path.anchor or ".." in path.parts or not path.parts:
            raise WrongModel(f"{graph} reads a file outside its folder; use another copy")
        if not (graph.parent / place).is_file():
            raise ModelCorrupt(
                f"{graph} cannot be loaded; download the model again: {place}, which it reads its "
                "numbers from, is missing"
            )
    return graph, *(graph.parent / place for place in places)


def missing_file(folder: Path, graph: str | None) -> str | None:
    """Return a file that an interrupted download left out; None if all are there."""
    wanted = [folder / name for name in ("config.json", "tokenizer.json", graph or "modules.json")]
    # Links to nowhere among them.
    wanted += folder.glob("*.json")
    if graph is None:
        # Files that are there and damaged are reported when they are read.
        with suppress(ModelCorrupt, WrongModel):
            wanted += _backbone(folder)
            for kind, place in _modules(folder):
                wanted += [place / "config.json"] * (kind in ("Pooling", "Dense"))
                wanted += [place / _WEIGHTS] * (kind == "Dense")
    return next((f.relative_to(folder).as_posix() for f in wanted if not f.exists()), None)


def _modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the class and the folder of each module in ``modules.json``."""
    path = folder / "modules.json"
    if not path.is_file():
        raise WrongModel(
            f"{folder} has no modules.json, so its pooling and Dense layers are missing; "
            "copy the complete model folder, not just the backbone"
        )
    for module in read_json(path, list):
        kind, place = "?", PurePosixPath()
        if isinstance(module, dict):
            kind, place = str(module.get("type")), PurePosixPath(str(module.get("path", "")))
        if place.is_absolute() or ".." in place.parts:
            raise WrongModel(f"{path} points outside the model folder")
        # A class of somebody else's keeps its full name, which is in no family's chain.
        ours = kind.startswith("sentence_transformers.")
        yield kind.rpartition(".")[2] if ours else kind, folder / place


def _check_chain(folder: Path, modules: Sequence[tuple[str, Path]], model: Model) -> None:
    kinds = [kind for kind, _ in modules]
    expected = list(model.family.modules(model))
    if kinds != expected:
        raise WrongModel(
            f"{folder}/modules.json chains {kinds} with {kinds.count('Dense')} Dense layers, "
            f"{model.name} has {model.dense_layers} and is {expected}: another chain gives vectors "
            "in another space, and no class named in a model is ever imported; use a copy of the "
            "model with that layout"
        )
    if modules[0][1] != folder:
        raise WrongModel(_misplaced(folder, modules[0][1].relative_to(folder).as_posix()))


def _misplaced(folder: Path, place: str) -> str:
    return (
        f"the Transformer of {folder} lies in {place}, it must be in the folder itself: move the "
        f"files of {place} there, and let modules.json say path: '' for it"
    )


def _check_pooling(path: Path) -> None:
    config = read_json(path)
    prefix = "pooling_mode_"
    modes = {
        key.removeprefix(prefix)
        for key, on in config.items()
        if key.startswith(prefix) and on is True
    }
    modes |= {str(config["pooling_mode"])} if "pooling_mode" in config else set()
    if not modes <= {"mean", "mean_tokens"} or not modes:
        raise WrongModel(f"{path} asks for {sorted(modes)} pooling, not the mean")
    if config.get("include_prompt", True) is not True:
        raise WrongModel(f"{path} leaves the prompt out of the mean; set it to true")


def _check_dense(folders: Sequence[Path], pooled: object, where: Path, model: Model) -> None:
    width = pooled
    for path in [folder / "config.json" for folder in folders]:
        config = read_json(path)
        activation = str(config.get("activation_function", "")).rpartition(".")[2]
        if config.get("bias") is not False or activation != "Identity":
            raise WrongModel(
                f"{path} is a Dense layer with a bias or an activation ({activation}); those of "
                f"{model.name} have neither"
            )
        if config.get("in_features") != width:
            raise ModelCorrupt(
                f"{path} does not take the {width} numbers before it; download the model again"
            )
        width = config.get("out_features")
    if width != model.width:
        raise WrongModel(
            f"the vectors of {where} are {width} wide, those of {model.name} {model.width}"
        )


def _backbone(folder: Path) -> _Files:
    """Return the files that transformers would load: one, else those that the index names."""
    path = folder / _INDEX
    if exists(folder / _WEIGHTS) or not exists(path):
        return (folder / _WEIGHTS,)
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelCorrupt(f"{path} names no weights; download the model again")
    names = set(map(str, places.values()))
    if any(PurePosixPath(name).name != name or not name.endswith(".safetensors") for name in names):
        raise WrongModel(f"{path} names files that are not safetensors files of the model folder")
    return tuple(folder / name for name in sorted(names))


def _check_weights(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        length = path.stat().st_size
    except OSError as error:
        pickled = sorted(f.name for kind in ("*.bin", "*.pt") for f in path.parent.glob(kind))
        if pickled and not exists(path):
            raise ModelCorrupt(
                f"{path} is missing, and there are only pickled weights ({', '.join(pickled)}), "
                "which can run code when loaded and are never read; get the safetensors copy of "
                "the model"
            ) from error
        raise ModelCorrupt(
            f"{path.parent} holds no safetensors file of the name {path.name} that can be read; "
            "download the complete model again"
        ) from error
    if start == _LFS_POINTER:
        raise ModelCorrupt(f"{path} is a Git LFS pointer, not weights; run: git lfs pull")
    header = int.from_bytes(start[:8], "little")
    if length < 8 or header > length - 8:
        raise ModelCorrupt(f"{path} is truncated or damaged; download it again")
