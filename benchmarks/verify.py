"""Golden values of ``verify``, and how well it names causes: every one made on real weights.

    python benchmarks/verify.py --golden FOLDER          write the golden values of a checkpoint
    python benchmarks/verify.py FOLDER int8 int4         verify every fault at these precisions
    python benchmarks/verify.py FOLDER q4_0 --others     the same on other texts, on which the
                                                         thresholds of verify/golden.py were chosen

``broken.py`` makes the faults. A cause is *right* if it is named and no other is left, *left* if
others are not excluded, *missed* if the answer is ok, and *wrong* if it is another. On other texts
golden values are made first, and only the comparison with them is measured; ``--keep FOLDER`` keeps
the vectors. With ``--runtime`` the faults that are made of texts run on the project's
``OnnxRuntime`` in place of ``broken.py``. A table is printed and saved. A precision takes some
minutes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from broken import FAULTS, OTHER_FAULTS, Broken, Fault, Network, Precision
from pairs import save

from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.runtimes import Batch, OnnxRuntime, Runtime, TooLong
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.vectors import Vectors
from gemma_embed.verify import golden as stored
from gemma_embed.verify import verify
from gemma_embed.verify.golden import Golden, Probe, compared, encoded, probes

HERE = Path(__file__).parent
TARGET = Path(stored.__file__).parent / "golden"
# Golden values are of these; the others serve steps of their own.
COMPARED = 12
# Two answers nearer than this are one: the model cannot show the fault.
EQUAL = 1e-3

Answers = dict[str, dict[str, Vectors]]


def model_of(folder: Path) -> Model:
    """Return a checkpoint's row."""
    return BUNDLED if folder.name == BUNDLED.repository else EMBEDDINGGEMMA_300M


def answers_of(network: Network, model: Model, texts: Sequence[Probe]) -> Answers:
    """Return the compared part of every probe's vector, by fault."""
    return {
        name: {probe.name: compared(vector) for probe, vector in zip(texts, vectors, strict=True)}
        for name, vectors in vectors_of(network, model, texts).items()
        if len(vectors[0]) == model.width
    }


def vectors_of(
    network: Network, model: Model, texts: Sequence[Probe]
) -> dict[str, Sequence[Vectors]]:
    """Return every probe's vector, by fault."""
    prompted = [probe.prompted(model.prompts) for probe in texts]
    return {name: Broken(network, fault, model).vectors(prompted) for name, fault in FAULTS.items()}


def differing(answers: Answers) -> Answers:
    """Leave out what a fault does not change, and faults that change nothing."""
    right = answers["ok"]
    changed = {
        fault: {
            name: part for name, part in own.items() if np.linalg.norm(part - right[name]) > EQUAL
        }
        for fault, own in answers.items()
    }
    return {"ok": right} | {fault: own for fault, own in changed.items() if own}


@cache
def network_of(folder: Path, precision: Precision = "float32") -> Network:
    """Return one network, which remembers what it computed."""
    return Network(folder, precision)


def write_golden(folder: Path) -> None:
    """Write a checkpoint's golden values into the package."""
    model = model_of(folder)
    network = network_of(folder)
    texts = probes()[:COMPARED]
    answers = differing(answers_of(network, model, texts))
    prompted = [probe.prompted(model.prompts) for probe in texts]
    right = Broken(network, FAULTS["ok"], model).vectors(prompted)
    content = {
        "model": model.name,
        "revision": Checkpoint.read(folder, model).revision,
        "command": "python benchmarks/verify.py --golden FOLDER",
        "inner": network.inner,
        "complete": {
            probe.name: encoded(vector) for probe, vector in zip(texts, right, strict=True)
        },
        "answers": {
            fault: {name: encoded(part) for name, part in own.items()}
            for fault, own in answers.items()
        },
    }
    TARGET.mkdir(exist_ok=True)
    path = TARGET / f"{model.name}.json"
    path.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    print(path, f"{path.stat().st_size:,} bytes,", len(answers), "faults")


class Altered(Runtime):
    """A runtime of the project that gets other texts."""

    def __init__(self, runtime: Runtime, fault: Fault) -> None:
        """Take both."""
        self._runtime, self._fault = runtime, fault

    @property
    def model(self) -> Model:
        """The runtime's own row."""
        return self._runtime.model

    @property
    def identity(self) -> Identity:
        """The runtime's own."""
        return self._runtime.identity

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors of altered texts; see ``Runtime.embed``."""
        return self._runtime.embed([self._fault.text(text) for text in texts], truncate=truncate)


def judged(fault: str, cause: str, not_excluded: Sequence[str]) -> str:
    """Say how right an answer is."""
    if cause == fault.partition("/")[0]:
        return "left" if not_excluded else "right"
    return "missed" if cause == "ok" else "wrong"


def table(folder: Path, precision: Precision) -> dict[str, list[Any]]:
    """Verify every fault at a precision."""
    model = model_of(folder)
    network = network_of(folder, precision)
    prompted = [probe.prompted(model.prompts) for probe in probes()[:COMPARED]]
    found = {}
    for name, fault in (FAULTS | OTHER_FAULTS).items():
        runtime = Broken(network, fault, model)
        runtime.vectors(prompted)  # in one pass, and each is remembered
        found[name] = row(name, verify(runtime))
    return found


def table_of_runtime(folder: Path, precision: Any) -> dict[str, list[Any]]:
    """Verify the faults that are made of texts on ``OnnxRuntime``."""
    runtime = OnnxRuntime(folder, precision=precision)
    return {
        name: row(name, verify(Altered(runtime, fault)))
        for name, fault in FAULTS.items()
        if fault == Fault(text=fault.text)
    }


def table_of_others(
    folder: Path, precisions: Sequence[Precision], keep: Path | None
) -> dict[str, Any]:
    """Compare the answers to other texts with golden values made of them."""
    model = model_of(folder)
    texts = [Probe(**one) for one in json.loads((HERE / "verify_others.json").read_text())]

    def answers(precision: Precision) -> Answers:
        file = keep / f"others-{precision}.npz" if keep else None
        if file is None or not file.exists():
            made = answers_of(Network(folder, precision), model, texts)
            if file is None:
                return made
            np.savez(file, **{name: np.array(list(own.values())) for name, own in made.items()})
        with np.load(file) as kept:
            names = [probe.name for probe in texts]
            return {fault: dict(zip(names, kept[fault], strict=True)) for fault in kept.files}

    golden = Golden(0, differing(answers("float32")))
    return {
        precision: {
            name: row(name, golden.nearest(own)) for name, own in answers(precision).items()
        }
        for precision in precisions
    }


def row(fault: str, verdict: Any) -> list[Any]:
    """Return judgement, cause, distance, precision, and what is not excluded."""
    cause, left = verdict.cause, verdict.not_excluded
    if fault == "not_normalised":
        (cause,) = verdict.notes
    said = judged(fault, cause, left)
    distance = None if verdict.distance is None else round(verdict.distance, 4)
    print(f"{said:7s} {fault:30s} {cause:30s} {distance} {verdict.precision} {', '.join(left)}")
    return [said, cause, distance, verdict.precision, list(left)]


def main() -> None:
    """Read the command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("precisions", nargs="*", metavar="PRECISION")
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("--runtime", action="store_true")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.golden:
        write_golden(options.folder)
    results: dict[str, Mapping[str, Any]] = {}
    if options.others:
        results = table_of_others(options.folder, options.precisions, options.keep)
    else:
        make = table_of_runtime if options.runtime else table
        for precision in options.precisions:
            print(precision)
            results[precision] = make(options.folder, precision)
    name = "verify" + "_others" * options.others + "_runtime" * options.runtime
    for precision, found in results.items():
        print(precision, dict(Counter(said for said, *_ in found.values())))
        save(f"{name}_{precision}", {"faults": found})


if __name__ == "__main__":
    main()
