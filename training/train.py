"""Distil the teacher into the student.

Two stages: the token table and the Dense layers alone (`without_layers`, seconds a pass), then the
whole model. Both learn the teacher's vectors and, at every Matryoshka width, the teacher's
similarities among the texts of a batch.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from data import BATCH, Batch, Corpus, batches, pad
from safetensors.torch import load_file, save_file
from student import (
    SPECIAL,
    WIDTHS,
    Student,
    build_tokenizer,
    first_weights,
    kept_pieces,
    teacher_vocabulary,
)
from teacher import WIDTH as TEACHER_WIDTH
from teacher import Teacher
from torch import Tensor
from torch.nn import functional

Run = Callable[[Tensor, Tensor], Tensor]

HELD_OUT = 4096
TEMPERATURE = 0.05
TABLE_SHARE = 0.25
EMA_EVERY = 10
EMA_DECAY = 0.95


def distillation_loss(output: Tensor, target: Tensor) -> Tensor:
    """How far a batch is from the teacher.

    Args:
        output: Student output, before normalisation.
        target: Unit teacher vectors, rotated so that the first columns matter most.

    Returns:
        Cosine distance of the first columns to the teacher's vector, plus, averaged over the
        widths, the squared error of the similarities and the divergence of the rankings.
    """
    loss = 1 - functional.cosine_similarity(output[:, :TEACHER_WIDTH], target, dim=-1).mean()
    others = ~torch.eye(len(target), dtype=torch.bool)
    wanted = (target @ target.T)[others].view(len(target), -1)
    ranking = functional.softmax(wanted / TEMPERATURE, -1)
    for width in WIDTHS:
        cut = functional.normalize(output[:, :width], dim=-1)
        found = (cut @ cut.T)[others].view(len(target), -1)
        divergence = functional.kl_div(
            functional.log_softmax(found / TEMPERATURE, -1), ranking, reduction="batchmean"
        )
        error = functional.mse_loss(found, wanted)
        loss = loss + (20 * error + divergence) / len(WIDTHS)
    return loss


def rotation(vectors: np.ndarray) -> np.ndarray:
    """Orthogonal matrix whose first columns carry most of the vectors (PCA without centring)."""
    sample = vectors.astype(np.float32)
    return np.linalg.eigh(sample.T @ sample)[1][:, ::-1].copy()


def finished_vectors(path: Path, turn: np.ndarray) -> Tensor:
    """The teacher vectors written so far, rotated, in bfloat16."""
    done = int(path.with_suffix(".done").read_text())
    stored = np.load(path, mmap_mode="r")[:done]
    matrix = torch.from_numpy(turn)
    parts = [
        (torch.from_numpy(stored[start : start + 50_000].astype(np.float32)) @ matrix).bfloat16()
        for start in range(0, done, 50_000)
    ]
    return torch.cat(parts)


def agreement(student: Student, corpus: Corpus, target: Tensor, whole: bool) -> dict[str, float]:
    """How well held-out texts agree with the teacher.

    Args:
        student: The model.
        corpus: The texts; the first `HELD_OUT` are held out.
        target: Teacher vectors of the held-out texts.
        whole: Whether to run the encoder layers.

    Returns:
        Mean cosine, and for the query form of each text, how often the nearest document (other
        than itself) is the teacher's nearest, at 768 and 128 wide.
    """
    outputs = []
    for prompt in ("task: search result | query: ", "title: none | text: "):
        sequences = [corpus.prompted(i, prompt) for i in range(HELD_OUT)]
        order = np.argsort([len(s) for s in sequences])
        output = torch.empty(HELD_OUT, WIDTHS[0])
        for part in order.reshape(-1, BATCH):
            batch = pad([sequences[i] for i in part], part)
            run = student if whole else student.without_layers
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                output[torch.from_numpy(part)] = run(batch.ids, batch.mask)
        outputs.append(output)
    queries, documents = outputs

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


def rate(step: int, steps: int, decay: float) -> float:
    """Learning rate factor: a short rise, a plateau, and a fall over the last part."""
    left = (steps - step) / max(1, decay * steps)
    return min(1.0, (step + 1) / 200, max(0.0, left))


def save(path: Path, student: Student, average: Student, turn: np.ndarray, step: int) -> None:
    """Write a checkpoint in one move, so that a reader never finds half of one."""
    tensors = {"turn": torch.from_numpy(turn)}
    for name, model in (("model", student), ("average", average)):
        tensors |= {f"{name}.{key}": value for key, value in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"step": str(step)})
    partial.rename(path)


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Take one of the two models out of a checkpoint."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, default=Path("build/training/corpus.jsonl"))
    parser.add_argument("--teacher", type=Path, default=Path("build/training/teacher.npy"))
    parser.add_argument("--out", type=Path, default=Path("build/training/checkpoint.safetensors"))
    parser.add_argument("--resume", type=Path, help="go on from this checkpoint")
    parser.add_argument("--table-passes", type=int, default=2, help="passes of the first stage")
    parser.add_argument("--steps", type=int, default=8000, help="steps of the second stage")
    parser.add_argument("--decay", type=float, default=0.3, help="share of steps that slow down")
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)

    known = teacher_vocabulary()
    pieces = kept_pieces(known)
    corpus = Corpus(args.corpus, build_tokenizer(pieces))
    vocab_size = len(SPECIAL) + len(pieces)
    student = Student(vocab_size)
    # On a CPU and for texts this short, plain attention compiles to faster code than the fused one.
    student.backbone.set_attn_implementation("eager")
    weights = sum(parameter.numel() for parameter in student.parameters())
    print(f"{vocab_size} pieces, {weights} weights", flush=True)

    resumed = load_file(args.resume) if args.resume else None
    if resumed:
        turn = resumed["turn"].numpy()
        student.load_state_dict(part_of(resumed, "model"))
    else:
        turn = rotation(np.load(args.teacher, mmap_mode="r")[:20_000])
        frame = (known["[CLS]"], known["[SEP]"])
        vectors = Teacher().embed_ids([[frame[0], known[piece], frame[1]] for piece in pieces])
        counts = corpus.counts(vocab_size)[len(SPECIAL) :]
        first_weights(student, vectors.astype(np.float32) @ turn, counts / counts.sum())
    vectors = finished_vectors(args.teacher, turn)
    held_out = vectors[:HELD_OUT].float()

    def learn(batch: Batch, run: Run, optimizer: torch.optim.Optimizer) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            output = run(batch.ids, batch.mask)
        loss = distillation_loss(output, vectors[torch.from_numpy(batch.rows)].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    began = time.monotonic()
    if not resumed:
        print("start", agreement(student, corpus, held_out, whole=False), flush=True)
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0, fused=True
        )
        for number in range(args.table_passes):
            losses = [
                learn(batch, student.without_layers, optimizer)
                for batch in batches(corpus, vectors, HELD_OUT, rng)
            ]
            for group in optimizer.param_groups:
                group["lr"] /= 2
            seconds = time.monotonic() - began
            result = agreement(student, corpus, held_out, whole=False)
            print(f"table {number} {seconds:.0f}s loss {np.mean(losses):.4f} {result}", flush=True)
            vectors = finished_vectors(args.teacher, turn)

    # Adam takes as large a step for a rare word seen once as for a weight seen always: slow it.
    table = student.backbone.embed_tokens.weight
    rest = [p for p in student.parameters() if p is not table]
    groups = [{"params": rest, "share": 1.0}, {"params": [table], "share": TABLE_SHARE}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    average = copy.deepcopy(student)
    if resumed:
        average.load_state_dict(part_of(resumed, "average"))
    save(args.out, student, average, turn, 0)
    run = torch.compile(student, dynamic=True)
    step = 0
    losses = []
    while step < args.steps:
        vectors = finished_vectors(args.teacher, turn)
        for batch in batches(corpus, vectors, HELD_OUT, rng):
            for group in optimizer.param_groups:
                group["lr"] = (
                    args.learning_rate * group["share"] * rate(step, args.steps, args.decay)
                )
            losses.append(learn(batch, run, optimizer))
            step += 1
            if step % EMA_EVERY == 0:
                with torch.no_grad():
                    pairs = zip(average.parameters(), student.parameters(), strict=True)
                    for old, new in pairs:
                        old.lerp_(new, 1 - EMA_DECAY)
            if step % 100 == 0 or step == args.steps:
                seconds = time.monotonic() - began
                print(f"step {step} {seconds:.0f}s loss {np.mean(losses):.4f}", flush=True)
                losses = []
            if step % 500 == 0 or step == args.steps:
                print(json.dumps(agreement(average, corpus, held_out, whole=True)), flush=True)
                save(args.out, student, average, turn, step)
            if step == args.steps:
                break


if __name__ == "__main__":
    main()
