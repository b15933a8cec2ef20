"""Teach EmbeddingGemma your own field: (question, passage) pairs in, a checkpoint folder out.

Run: python examples/finetune.py --out handbook-model

Each line of --train is {"question": ..., "passage": ...}, and has a "negative" if you have wrong
passages that look right; without these, they are mined. Scores before and after are with prompts,
at every width, on questions that were held out and on general sets.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import run
from learning import DATA, new_figure, read_lines, save

from gemma_embed import Embedder
from gemma_embed.evaluate import Interval, Question, evaluate
from gemma_embed.evaluate.scores import intervals
from gemma_embed.passages import Passage
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime
from gemma_embed.runtimes.local.hub import model_folder

GENERAL = Path(__file__).parent.parent / "training" / "evaluation"
WIDTHS = (768, 512, 256, 128)

Pairs = list[dict[str, str]]
Set = tuple[list[Passage], list[Question]]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--train", type=Path, default=DATA / "handbook-train.jsonl")
    parser.add_argument(
        "--also",
        type=Path,
        nargs="*",
        default=[DATA / "handbook-terms.jsonl"],
        help="more pairs to train on, whose passages are not searched in the comparison",
    )
    parser.add_argument("--held-out", type=Path, default=DATA / "handbook-held-out.jsonl")
    parser.add_argument(
        "--general",
        type=Path,
        nargs="*",
        default=[GENERAL / "everyday.json", GENERAL / "technical.json"],
        help="sets that should not become worse",
    )
    parser.add_argument("--model", default="bundled", help="'bundled', a folder, or a hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--max-steps", type=int, default=-1, help="stop earlier")
    parser.add_argument("--batch", type=int, default=64, help="pairs that are told apart at once")
    parser.add_argument("--mini-batch", type=int, default=16, help="texts in memory at once")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--max-tokens", type=int, default=256, help="of a text, while training")
    parser.add_argument("--negatives", type=int, default=1, help="mined for each question; 0: none")
    parser.add_argument("--lora", type=int, default=0, help="rank of LoRA; 0 trains all weights")
    parser.add_argument("--mix", type=float, default=0.5, help="share of the change to keep")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("finetune.png"))
    return parser.parse_args()


def open_model(folder: Path) -> Any:
    """Open a checkpoint for training: always float32, since float16 overflows in this model."""
    from sentence_transformers import SentenceTransformer

    # Without local_files_only the writer of the model card asks the hub about the folder's name.
    return SentenceTransformer(
        str(folder), model_kwargs={"dtype": "float32"}, local_files_only=True
    )


def has_bfloat16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    import torch

    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    of_the_cpu = getattr(torch.cpu, "get_capabilities", dict)()
    return device == "cpu" and bool(of_the_cpu.get("amx_bf16") or of_the_cpu.get("avx512_bf16"))


def with_negatives(data: Any, model: Any, prompts: dict[str, str], count: int) -> Any:
    """Add wrong passages that the model takes for right.

    The paper's hardness weights concern explicit negatives only: on bare pairs that setting of the
    loss does nothing.
    """
    from sentence_transformers.util import mine_hard_negatives

    if count == 0 or "negative" in data.column_names:
        return data
    return mine_hard_negatives(
        data,
        model,
        "question",
        "passage",
        num_negatives=count,
        # No margin below the right passage's score: in a field that the model is bad at, it would
        # drop the questions with the most to learn. If several of your passages answer one
        # question, name negatives yourself.
        query_prompt=prompts["question"],
        corpus_prompt=prompts["passage"],
        output_format="n-tuple",
        verbose=False,
    )


def mix(model: Any, original: dict[str, Any], share: float) -> None:
    """Move the weights back, so that this share of their change is left (arXiv 2109.01903).

    It keeps most of what was learnt, and forgets less of what the model could before.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(torch.lerp(original[name], weight, share))


def train(model: Any, pairs: Pairs, options: argparse.Namespace) -> None:
    """Train the model in place, at all of its widths."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MatryoshkaLoss,
    )
    from sentence_transformers.sentence_transformer.training_args import (
        BatchSamplers,
        SentenceTransformerTrainingArguments,
    )

    prompts = {"question": model.prompts["query"], "passage": model.prompts["document"]}
    data = with_negatives(Dataset.from_list(pairs), model, prompts, options.negatives)
    prompts |= {
        name: prompts["passage"] for name in data.column_names if name.startswith("negative")
    }
    ranking = CachedMultipleNegativesRankingLoss(
        model,
        mini_batch_size=options.mini_batch,
        # The setting of the EmbeddingGemma paper (arXiv 2509.20354).
        hardness_mode="hard_negatives",
        hardness_strength=5,
    )
    longest = model.max_seq_length
    model.max_seq_length = min(longest, options.max_tokens)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=options.lora, lora_alpha=2 * options.lora, target_modules="all-linear"
        )
        model[0].model = get_peft_model(model[0].model, config)
    trainer = SentenceTransformerTrainer(
        model,
        SentenceTransformerTrainingArguments(
            str(options.out),
            prompts=prompts,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch,
            # An equal question or passage in the batch would be taken for a wrong answer.
            batch_sampler=BatchSamplers.NO_DUPLICATES,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            bf16=has_bfloat16(model.device.type),
            use_cpu=model.device.type == "cpu",
            seed=options.seed,
            save_strategy="no",
            report_to="none",
            logging_steps=10,
        ),
        data,
        loss=MatryoshkaLoss(model, ranking, list(WIDTHS)),
    )
    trainer.train()
    # Otherwise the model would go on to compute in bfloat16.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if options.lora:
        model[0].model = model[0].model.merge_and_unload()
    # A shorter limit would be saved with the model, and cut texts for ever after.
    model.max_seq_length = longest
    model.eval()


def own_sets(train_pairs: Pairs, held_out: Pairs) -> dict[str, Set]:
    """Return the held-out questions, and those of them whose passage training did not see."""
    texts = list(dict.fromkeys(row["passage"] for row in train_pairs + held_out))
    ids = {text: str(number) for number, text in enumerate(texts)}
    passages = [Passage(text, id=name) for text, name in ids.items()]
    seen = {row["passage"] for row in train_pairs}
    new = [row for row in held_out if row["passage"] not in seen]
    return {
        name: (passages, [Question(row["question"], (ids[row["passage"]],)) for row in rows])
        for name, rows in {"own field": held_out, "own field, new passages": new}.items()
        if rows
    }


def general_set(path: Path) -> Set:
    """Read a set in the form of training/evaluation."""
    data = json.loads(path.read_text(encoding="utf-8"))
    passages = [
        Passage(row["text"], id=row["id"], metadata={"title": row["title"]})
        for row in data["passages"]
    ]
    asked = [Question(row["text"], passages=tuple(row["relevant"])) for row in data["queries"]]
    return passages, asked


def compare(sets: dict[str, Set], before: Path, after: Path, store: Path, picture: Path) -> None:
    """Print before and after, with prompts, at every width; draw recall@1."""
    runtimes = {"before": OnnxRuntime(before), "after": OnnxRuntime(after)}
    figure, axes = new_figure(1, len(sets), (3.2 * len(sets), 3.4))
    # Vectors are kept: two sets have the same passages.
    options: dict[str, Any] = {"widths": WIDTHS, "words": False, "timed": 0, "store": store}
    for axis, (name, (passages, asked)) in zip(axes[0], sets.items(), strict=True):
        report = evaluate(passages, asked, runtimes, **options)
        rows = {(row.setting.runtime, row.setting.width): row for row in report.rows}
        print(f"\n{name}: {len(asked)} questions, {len(passages)} passages")
        for metric in ("recall@1", "recall@5", "nDCG@10"):
            print(f"  {metric:12} before  after   difference")
            for width in WIDTHS:
                old, new = (rows[which, width].scores[metric] for which in runtimes)
                gain = intervals((new - old)[None], (-1.0, 1.0))[0]
                print(f"  {width:12} {old.mean():.3f}   {new.mean():.3f}   {shown(gain)}")
        for which in runtimes:
            found = [rows[which, width].intervals["recall@1"] for width in WIDTHS]
            means = np.array([each.mean for each in found])
            ends = [means - [each.low for each in found], [each.high for each in found] - means]
            places = np.arange(len(WIDTHS)) + (0.06 if which == "after" else -0.06)
            axis.errorbar(places, means, np.maximum(ends, 0), fmt="o-", capsize=3, label=which)
        axis.set(title=f"{name}\n({len(asked)} questions)", ylim=(0, 1), xlabel="width")
        axis.set_xticks(range(len(WIDTHS)), WIDTHS)
    axes[0, 0].set_ylabel("recall@1, with prompts")
    axes[0, 0].legend()
    save(figure, picture)


def shown(gain: Interval) -> str:
    """Write a difference down, and what it allows to say."""
    word = "better" if gain.low > 0 else "worse" if gain.high < 0 else "no difference shown"
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) {word}"


def check_saved(model: Any, before: Path, after: Path) -> None:
    """Compare the saved folder with the model in memory, and with what it was made from.

    Raises:
        SystemExit: If both runtimes do not compute the model's vectors from the folder, or
            anything but the weights has changed.
    """
    from transformers import AutoConfig

    kept = ("sliding_window", "layer_types", "use_bidirectional_attention", "rope_parameters")
    configs = [
        AutoConfig.from_pretrained(folder, local_files_only=True) for folder in (before, after)
    ]
    for name in kept:
        old, new = (getattr(config, name) for config in configs)
        if old != new:
            raise SystemExit(f"{after}/config.json: {name} is {new}, and was {old}")
    # The second text is longer than the sliding window.
    texts = ["How hot should bread be inside?", "The window is 512 tokens wide. " * 100]
    wanted = model.encode([model.prompts["document"] + text for text in texts])
    for runtime in (OnnxRuntime(after), TransformersRuntime(after, device="cpu")):
        if runtime.prompts != OnnxRuntime(before).prompts:
            raise SystemExit(f"{after} has other prompts than {before}")
        cosines = np.sum(Embedder(runtime).embed_documents(texts) * wanted, axis=1)
        if cosines.min() < 0.9999:
            raise SystemExit(f"{after}: vectors differ after loading, cosine {cosines.min():.4f}")
    print(f"{after}: window, prompts, tokenizer and vectors are the trained model's.")


def main() -> None:
    """Train, save, check what was saved, and compare."""
    options = arguments()
    before = model_folder(options.model, None, offline=False)
    keys = ("question", "passage")
    train_pairs, held_out = read_lines(options.train, *keys), read_lines(options.held_out, *keys)
    more = [row for path in options.also for row in read_lines(path, *keys)]
    with_negative = sum("negative" in row for row in train_pairs + more)
    if with_negative not in (0, len(train_pairs + more)):
        raise SystemExit(f"a 'negative' is in {with_negative} pairs only: all or none need it")
    model = open_model(before)
    original = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, train_pairs + more, options)
    mix(model, original, options.mix)
    # The card would quote training pairs, which are nobody else's business.
    model.save_pretrained(str(options.out), create_model_card=False)
    check_saved(model, before, options.out)
    sets = own_sets(train_pairs, held_out)
    sets |= {f"general, {path.stem}": general_set(path) for path in options.general}
    with tempfile.TemporaryDirectory() as folder:
        compare(sets, before, options.out, Path(folder) / "vectors.sqlite", options.picture)


if __name__ == "__main__":
    run(main)
