"""Distil the teacher into the student.

The student starts from the teacher's weights (`transplant.py`). It learns the teacher's vectors,
the teacher's similarities among the texts of a batch at every Matryoshka width, the teacher's state
of every token and, from the written texts, which passage answers a question.
"""

import argparse
import copy
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import BATCH, Batch, Corpus, asked, batches, pad
from losses import answer_loss, distillation_loss, token_loss
from rounding import HALFWAY, moved
from safetensors.torch import load_file, save_file
from student import (
    WIDTHS,
    Student,
    build_tokenizer,
    part_of,
    supported_pieces,
    teacher_vocabulary,
    vocabulary_size,
)
from targets import Targets
from teacher import WIDTH as TEACHER_WIDTH
from teacher import Teacher
from torch import Tensor
from torch.nn import functional
from transplant import transplant

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

HELD_OUT = 4096
SAMPLE = 20_000
# Texts that the first weights are fitted to, after the held-out ones.
FITTED = 3000
PART = 64
TABLE_SHARE = 0.25
WARMUP = 100
SAVE_EVERY = 500
EMA_EVERY = 10
EMA_DECAY = 0.95


def rotation(vectors: np.ndarray) -> np.ndarray:
    """Orthogonal matrix whose first columns carry most of the vectors (PCA without centring)."""
    sample = vectors.astype(np.float32)
    return np.linalg.eigh(sample.T @ sample)[1][:, ::-1].copy()


def outputs(run: Run, batch: Batch) -> tuple[Tensor, Tensor]:
    """Run a model on a batch, in parts that fit into a processor's cache.

    Returns:
        One row a text; and one row a token, text after text, without padding.
    """
    texts, tokens = [], []
    for ids, mask in batch.parts(PART):
        with torch.autocast("cpu", torch.bfloat16):
            output, states = run(ids, mask)
        texts.append(output)
        tokens.append(states[mask.bool()])
    return torch.cat(texts), torch.cat(tokens).float()


def agreement(
    student: Student, corpus: Corpus, target: Tensor, rounding: float
) -> dict[str, float]:
    """How well held-out texts agree with the teacher.

    Args:
        student: The model.
        corpus: The texts; the first `HELD_OUT` are held out.
        target: Teacher vectors of the held-out texts.
        rounding: The share by which its matrices are moved towards 4 bits.

    Returns:
        Mean cosine, and for the query form of each text, how often the nearest document (other
        than itself) is the teacher's nearest, at 768 and 128 wide.
    """
    found = []
    for prompt in ("task: search result | query: ", "title: none | text: "):
        sequences = [corpus.prompted(i, prompt) for i in range(HELD_OUT)]
        order = np.argsort([len(s.ids) for s in sequences])
        output = torch.empty(HELD_OUT, WIDTHS[0])
        with moved(student.backbone.layers, rounding), torch.inference_mode():
            for part in order.reshape(-1, BATCH):
                batch = pad([sequences[i] for i in part], part)
                output[torch.from_numpy(part)] = outputs(student, batch)[0]
        found.append(output)
    queries, documents = found

    def nearest(left: Tensor, right: Tensor) -> Tensor:
        return (left @ right.T).fill_diagonal_(-1).argmax(-1)

    wanted = nearest(target, target)
    result = {
        "cosine": functional.cosine_similarity(queries[:, :TEACHER_WIDTH], target).mean().item()
    }
    for width in (768, 128):
        left, right = (functional.normalize(x[:, :width], dim=-1) for x in (queries, documents))
        result[f"nearest@{width}"] = (nearest(left, right) == wanted).float().mean().item()
    return {name: round(value, 4) for name, value in result.items()}


def rate(step: int, steps: int) -> float:
    """Learning rate factor: a short warm-up times a decay to zero."""
    return min((step + 1) / WARMUP, 1 - step / steps)


def fitted_texts(path: Path, teacher: Teacher) -> list[Tensor]:
    """Token ids of the texts that the first weights are fitted to, grouped by length."""
    with path.open() as file:
        rows = list(itertools.islice(file, HELD_OUT, HELD_OUT + FITTED))
    by_length = defaultdict(list)
    for ids in teacher.tokenise([json.loads(row)["text"] for row in rows]):
        if 4 <= len(ids) < 60:
            by_length[len(ids)].append(ids)
    return [torch.tensor(ids) for ids in by_length.values()]


def save(path: Path, student: Student, average: Student, turn: np.ndarray) -> None:
    """Write a checkpoint atomically, so that a reader never finds an incomplete one."""
    tensors = {"turn": torch.from_numpy(turn)}
    for name, model in (("model", student), ("average", average)):
        tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)


def beginning(args: argparse.Namespace, pieces: list[str]) -> tuple[Student, Student, np.ndarray]:
    """The student, its average and the rotation, from a checkpoint or from the teacher."""
    student = Student(vocabulary_size(pieces))
    # On a CPU, for such short texts, eager attention compiles to faster code than fused attention.
    student.backbone.set_attn_implementation("eager")
    average = copy.deepcopy(student)
    if args.resume:
        resumed = load_file(args.resume)
        student.load_state_dict(part_of(resumed, "model"))
        average.load_state_dict(part_of(resumed, "average"))
        return student, average, resumed["turn"].numpy()
    turn = rotation(np.load(args.teacher, mmap_mode="r")[:SAMPLE])
    teacher = Teacher()
    ids = fitted_texts(args.corpus, teacher)
    bert = teacher.model.float()
    transplant(student, bert, teacher.vocabulary, pieces, ids, torch.from_numpy(turn))
    average.load_state_dict(student.state_dict())
    return student, average, turn


def main() -> None:
    """Train, or continue training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--teacher", type=Path, default=Path("build/training/teacher.npy"))
    parser.add_argument("--out", type=Path, default=Path("build/training/checkpoint.safetensors"))
    parser.add_argument("--resume", type=Path, help="continue from this checkpoint")
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument(
        "--asked-every",
        type=int,
        default=4,
        help="one step in so many uses questions and their passages; 0 disables it",
    )
    parser.add_argument(
        "--plain", action="store_true", help="do not move matrices half-way to 4 bits"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    rounding = 0.0 if args.plain else HALFWAY

    pieces = supported_pieces(teacher_vocabulary())
    corpus = Corpus(args.corpus, build_tokenizer(pieces))
    student, average, turn = beginning(args, pieces)
    print(f"{sum(each.numel() for each in student.parameters())} weights", flush=True)
    targets = Targets(args.teacher, turn, corpus.lengths())
    held_out = targets.vectors[:HELD_OUT].float()

    began = time.monotonic()
    print("start", agreement(student, corpus, held_out, rounding), flush=True)
    # Adam's step for a rarely seen word is as large as for any weight: reduce it.
    table = student.backbone.embed_tokens.weight
    rest = [each for each in student.parameters() if each is not table]
    groups = [{"params": rest, "share": 1.0}, {"params": [table], "share": TABLE_SHARE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0, fused=True)
    run = torch.compile(student, dynamic=True)
    step = 0
    losses = []
    while step < args.steps:
        targets = Targets(args.teacher, turn, corpus.lengths())
        pairs = asked(corpus, targets.vectors, rng)
        for batch in batches(corpus, targets.vectors, HELD_OUT, rng):
            asks = next(pairs) if args.asked_every and step % args.asked_every == 0 else None
            if asks:
                # The other batch is left out of this pass, at random.
                batch = asks.batch
            factor = rate(step, args.steps)
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * factor * group["share"]
            optimizer.zero_grad(set_to_none=True)
            with moved(student.backbone.layers, rounding):
                output, tokens = outputs(run, batch)
                target = targets.of_texts(batch)
                parts = [
                    distillation_loss(output, target),
                    token_loss(tokens, targets.of_tokens(batch)),
                    answer_loss(output, target, asks) if asks else torch.zeros(()),
                ]
                # The final goal is the texts' vectors.
                (parts[0] + factor * parts[1] + parts[2]).backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            losses.append([each.item() for each in parts])
            step += 1
            if step % EMA_EVERY == 0:
                with torch.no_grad():
                    for old, new in zip(average.parameters(), student.parameters(), strict=True):
                        old.lerp_(new, 1 - EMA_DECAY)
            if step % 100 == 0 or step == args.steps:
                seconds = time.monotonic() - began
                means = np.mean(losses, 0).round(4)
                print(f"step {step} {seconds:.0f}s losses {means}", flush=True)
                losses = []
            if step % SAVE_EVERY == 0 or step == args.steps:
                found = agreement(average, corpus, held_out, rounding)
                print(json.dumps(found), flush=True)
                save(args.out, student, average, turn)
            if step == args.steps:
                break


if __name__ == "__main__":
    main()
