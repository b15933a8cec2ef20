"""Write a checkpoint as a sentence-transformers folder in the real model's layout."""

import argparse
import json
from pathlib import Path

import torch
from rounding import HALFWAY, moved
from safetensors.torch import load_file, save_file
from student import (
    HIDDEN,
    PROMPTS,
    SPECIAL,
    Student,
    build_tokenizer,
    part_of,
    supported_pieces,
    teacher_vocabulary,
    vocabulary_size,
)
from student import config as student_config
from torch import Tensor

MAX_TOKENS = 2048
# Of bfloat16's eight: three fewer make the packed file a quarter smaller.
BITS = 5
# Share of the weights trained with questions; the rest are those before. Fine-tuning forgets, and
# interpolated weights retain more of both (Wortsman et al., arXiv 2109.01903).
AFTER = 0.7
IDENTITY = "torch.nn.modules.linear.Identity"
POOLING_MODES = ("cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def rounded_to(tensor: Tensor, bits: int) -> Tensor:
    """Round to so many significant binary digits: the zeros after them compress well."""
    mantissa, exponent = torch.frexp(tensor.float())
    return torch.ldexp(torch.round(mantissa * 2**bits) / 2**bits, exponent).contiguous()


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    # bfloat16 halves the file; loaders convert it to float32, the dtype in config.json.
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: rounded_to(tensor, BITS).bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, path, metadata={"format": "pt"})


def _write_dense(folder: Path, weight: Tensor) -> None:
    out_features, in_features = weight.shape
    content = {"in_features": in_features, "out_features": out_features, "bias": False}
    _write(folder / "config.json", content | {"activation_function": IDENTITY})
    _save(folder / "model.safetensors", {"linear.weight": weight})


def export(student: Student, pieces: list[str], folder: Path) -> None:
    """Write the model folder.

    Args:
        student: The trained model.
        pieces: Its vocabulary, without special tokens.
        folder: Where to write.
    """
    names = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    paths = ("", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    _write(folder / "modules.json", modules)
    versions = {"sentence_transformers": "5.1.0", "transformers": "4.57.0", "pytorch": "2.8.0"}
    settings = {
        "model_type": "SentenceTransformer",
        "__version__": versions,
        "prompts": PROMPTS,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    _write(folder / "config_sentence_transformers.json", settings)
    limits = {"max_seq_length": MAX_TOKENS, "do_lower_case": False}
    _write(folder / "sentence_bert_config.json", limits)
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    pooling |= {f"pooling_mode_{mode}": False for mode in POOLING_MODES}
    _write(folder / "1_Pooling/config.json", pooling | {"include_prompt": True})
    _write_dense(folder / "2_Dense", student.dense_in.weight)
    _write_dense(folder / "3_Dense", student.dense_out.weight)

    content = student_config(vocabulary_size(pieces)).to_dict()
    # The loader halves the window of a bidirectional model, so the file states the full one.
    content |= {
        "architectures": ["Gemma3TextModel"],
        "dtype": "float32",
        "sliding_window": 512,
        "_sliding_window_pattern": 6,
    }
    _write(folder / "config.json", content)
    _save(folder / "model.safetensors", student.backbone.state_dict())

    build_tokenizer(pieces).save(str(folder / "tokenizer.json"), pretty=False)
    tokens = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), SPECIAL, strict=True))
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", tokenizer | tokens)
    _write(folder / "special_tokens_map.json", tokens)


def main() -> None:
    """Export the averaged weights of a checkpoint, half-way to 4 bits as in training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, default=Path("build/training/checkpoint.safetensors")
    )
    parser.add_argument("--before", type=Path, help="mix in the run without questions")
    parser.add_argument("--out", type=Path, default=Path("build/training/model"))
    args = parser.parse_args()
    pieces = supported_pieces(teacher_vocabulary())
    state = part_of(load_file(args.checkpoint), "average")
    if args.before:
        checkpoint = load_file(args.before)
        if not torch.equal(checkpoint["turn"], load_file(args.checkpoint)["turn"]):
            parser.error(f"{args.before} is not from the run that {args.checkpoint} continued")
        before = part_of(checkpoint, "average")
        state = {name: torch.lerp(before[name], state[name], AFTER) for name in state}
    student = Student(vocabulary_size(pieces))
    student.load_state_dict(state)
    with moved(student.backbone.layers, HALFWAY):
        export(student, pieces, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
