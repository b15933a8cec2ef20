"""Which files a checkpoint is made of: found once, judged, and all that is ever loaded.

Two layouts exist (sentence-transformers 5, in which Google published, and 6, in which fine-tunes
are saved); both are plain JSON and safetensors. ``modules.json`` names classes; they are compared
with an allow-list, and nothing is ever imported from it. Other files in the folder are ignored,
except those that a library would pick up on its own: these are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gemma_embed.errors import ModelCorrupt, ModelNotFound, WrongModel
from gemma_embed.models import Model
from gemma_embed.runtimes.local.files import exists, read_any_json, read_json

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Layout:
    """The files of a checkpoint.

    Attributes:
        weights: Safetensors files of the backbone.
        dense: The safetensors file of each Dense layer, in order.
    """

    weights: tuple[Path, ...]
    dense: tuple[Path, ...]

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any], model: Model) -> Layout:
        """Find the files of a checkpoint and judge what they say of themselves.

        Args:
            folder: The checkpoint's.
            config: Its ``config.json``.
            model: The row that it should be.

        Raises:
            ModelCorrupt: If a file is missing, damaged, or pickled.
            WrongModel: If its vectors would not be this model's.
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
        pooling, dense = _modules(folder, model)
        _check_pooling(read_json(pooling / "config.json"), pooling)
        _check_dense(dense, config.get("hidden_size"), folder, model)
        layout = cls(_weights(folder), tuple(_single(place) for place in dense))
        for path in (*layout.weights, *layout.dense):
            _check_weights(path)
        return layout


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model folder's ``config.json``.

    Raises:
        ModelNotFound: If there is none; the message says what the folder holds instead.
        ModelCorrupt: If it is no JSON object.
    """
    if exists(folder / "config.json"):
        return read_json(folder / "config.json")
    if exists(folder / _ADAPTER):
        raise ModelNotFound(
            f"{folder} holds a LoRA adapter and no model: merge it into its model "
            "(merge_and_unload) and save that"
        )
    if any(folder.glob("*.gguf")):
        raise ModelNotFound(
            f"{folder} holds a GGUF file, which these runtimes do not read; import it into Ollama "
            "(ollama create) and use OllamaRuntime, or get the safetensors files"
        )
    inside = sorted(path.parent.name for path in folder.glob("*_Transformer/config.json"))
    if inside:
        raise ModelNotFound(_misplaced(folder, inside[0]))
    raise ModelNotFound(f"{folder} holds no config.json, so it is not a model folder")


def missing_file(folder: Path) -> str | None:
    """Return a file that an interrupted download left out; None if all are there.

    Files that are there and damaged are for ``Layout.read`` to report.
    """
    wanted = [folder / name for name in ("config.json", "tokenizer.json", "modules.json")]
    try:
        if not (folder / _WEIGHTS).exists():
            wanted += _shards(folder) if (folder / _INDEX).exists() else [folder / _WEIGHTS]
        for kind, place in _chain(folder):
            if kind in ("Pooling", "Dense"):
                wanted.append(place / "config.json")
            if kind == "Dense":
                wanted.append(place / _WEIGHTS)
    except (ModelCorrupt, WrongModel):
        pass
    missing = [path for path in wanted if not path.exists()]
    return missing[0].relative_to(folder).as_posix() if missing else None


def _chain(folder: Path) -> Iterator[tuple[str, Path]]:
    path = folder / "modules.json"
    if not path.is_file():
        raise WrongModel(
            f"{folder} has no modules.json, so its pooling and Dense layers are missing; "
            "copy the complete model folder, not just the backbone"
        )
    modules = read_any_json(path)
    for module in modules if isinstance(modules, list) else ():
        kind = str(module.get("type")) if isinstance(module, dict) else "?"
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in _MODULES:
            raise WrongModel(
                f"{path} asks for a module of class {kind!r}; only sentence-transformers' own "
                f"{', '.join(_MODULES)} are read, and no class named in a model is ever imported"
            )
        place = PurePosixPath(str(module.get("path", "")))
        if place.is_absolute() or ".." in place.parts:
            raise WrongModel(f"{path} points outside the model folder")
        yield name, folder / place


def _modules(folder: Path, model: Model) -> tuple[Path, tuple[Path, ...]]:
    """Return the folders of the pooling and of the Dense layers."""
    path = folder / "modules.json"
    found = list(_chain(folder))
    kinds = [name for name, _ in found]
    expected = list(model.family.modules(model))
    if kinds.count("Dense") < model.dense_layers:
        raise WrongModel(
            f"{path} lists {kinds.count('Dense')} Dense layers, {model.name} has "
            f"{model.dense_layers}: without them vectors lie in another space; "
            "use a copy of the model that has them"
        )
    if kinds != expected:
        raise WrongModel(f"{path} chains {kinds}, {model.name} is {expected}; use that layout")
    if found[0][1] != folder:
        raise WrongModel(_misplaced(folder, found[0][1].relative_to(folder).as_posix()))
    return found[1][1], tuple(place for name, place in found if name == "Dense")


def _misplaced(folder: Path, place: str) -> str:
    return (
        f"the Transformer of {folder} lies in {place}, it must be in the folder itself: move the "
        f"files of {place} there, and let modules.json say path: '' for it"
    )


def _check_pooling(config: Mapping[str, Any], folder: Path) -> None:
    modes = {
        key.removeprefix("pooling_mode_")
        for key, on in config.items()
        if key.startswith("pooling_mode_") and on is True
    }
    modes |= {str(config["pooling_mode"])} if "pooling_mode" in config else set()
    if not modes <= {"mean", "mean_tokens"} or not modes:
        raise WrongModel(f"{folder}/config.json asks for {sorted(modes)} pooling, not the mean")
    if config.get("include_prompt", True) is not True:
        raise WrongModel(f"{folder}/config.json leaves the prompt out of the mean; set it to true")


def _check_dense(folders: tuple[Path, ...], hidden: object, where: Path, model: Model) -> None:
    width = hidden
    for folder in folders:
        config = read_json(folder / "config.json")
        activation = str(config.get("activation_function", "")).rpartition(".")[2]
        if config.get("bias") is not False or activation != "Identity":
            raise WrongModel(
                f"{folder}/config.json is a Dense layer with a bias or an activation "
                f"({activation}); those of {model.name} have neither"
            )
        if config.get("in_features") != width:
            raise ModelCorrupt(
                f"{folder}/config.json does not take the {width} numbers before "
                "it; download the model again"
            )
        width = config.get("out_features")
    if width != model.width:
        raise WrongModel(
            f"the vectors of {where} are {width} wide, those of {model.name} {model.width}"
        )


def _weights(folder: Path) -> tuple[Path, ...]:
    """Return the files that transformers would load: one, else those that the index names."""
    if not exists(folder / _WEIGHTS) and exists(folder / _INDEX):
        return _shards(folder)
    return (_single(folder),)


def _shards(folder: Path) -> tuple[Path, ...]:
    path = folder / _INDEX
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelCorrupt(f"{path} names no weights; download the model again")
    names = set(map(str, places.values()))
    if any(PurePosixPath(name).name != name or not name.endswith(".safetensors") for name in names):
        raise WrongModel(f"{path} names files that are not safetensors files of the model folder")
    return tuple(folder / name for name in sorted(names))


def _single(folder: Path) -> Path:
    path = folder / _WEIGHTS
    if not exists(path):
        pickled = sorted(path.name for path in (*folder.glob("*.bin"), *folder.glob("*.pt")))
        if pickled:
            raise ModelCorrupt(
                f"{folder} holds only pickled weights ({', '.join(pickled)}), which can run code "
                "when loaded and are never read; get the safetensors copy of the model"
            )
        raise ModelCorrupt(
            f"{folder} holds no safetensors file of the name {_WEIGHTS}; download the complete "
            "model again"
        )
    return path


def _check_weights(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        length = path.stat().st_size
    except OSError as error:
        raise ModelCorrupt(f"{path} cannot be read; download it again") from error
    if start == _LFS_POINTER:
        raise ModelCorrupt(f"{path} is a Git LFS pointer, not weights; run: git lfs pull")
    header = int.from_bytes(start[:8], "little")
    if length < 8 or header > length - 8:
        raise ModelCorrupt(f"{path} is truncated or damaged; download it again")
