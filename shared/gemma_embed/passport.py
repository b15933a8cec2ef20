"""What an index says of its vectors, so that no others are ever mixed in or searched for.

For vector stores of any kind: ``passport`` goes into the store's own metadata, or into a file next
to it (``write_passport``), when the store is created. ``check_passport`` compares it afterwards.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch, ConfigurationError
from gemma_embed.files import expanded
from gemma_embed.passages import OWN
from gemma_embed.vectors import Vectors

# Below this two vectors of one text are not rounding apart, but two models: bfloat16 on another
# device stays above 0.999, another quantisation of the same weights may not.
SAME = 0.995
_SCHEMA = 2
_PROBE = "The quick brown fox jumps over the lazy dog."
_NORM_TOLERANCE = 1e-3
_AGAIN = "fill it again (a ChromaIndex: recreate(passages))"


class HasEmbedder(Protocol):
    """What both adapters are: something that has an ``Embedder``."""

    @property
    def embedder(self) -> Embedder:
        """The core's object."""


def embedder_of(given: Embedder | HasEmbedder) -> Embedder:
    """Return the embedder itself, or an adapter's.

    Raises:
        ConfigurationError: If it is neither.
    """
    own = given if isinstance(given, Embedder) else getattr(given, "embedder", None)
    if not isinstance(own, Embedder):
        raise ConfigurationError(
            f"the embedder is {type(given).__name__}: pass an Embedder, a GemmaEmbeddings or a "
            "GemmaEmbedding"
        )
    return own


def passport(
    embedder: Embedder | HasEmbedder, title_key: str | None = None
) -> dict[str, str | int]:
    """Return flat metadata for a collection of an embedder's document vectors.

    Args:
        embedder: Makes the document vectors.
        title_key: The metadata key of titles in it, for those who embed titles.

    Returns:
        The fingerprint, what it was made of in readable form, and the vector of a fixed sentence,
        from the store if it is there. Without secrets and addresses.
    """
    own = embedder_of(embedder)
    probe = own.embed([_PROBE])[0]
    stated: dict[str, str | int] = {
        "schema": _SCHEMA,
        "fingerprint": own.fingerprint,
        **_facts(own),
        **({} if title_key is None else {"title_key": title_key}),
        "probe": base64.b64encode(probe.astype("<f4").tobytes()).decode(),
    }
    return {OWN + name: value for name, value in stated.items()}


def _facts(embedder: Embedder) -> dict[str, str | int]:
    prompts, task = embedder.runtime.prompts, embedder.document_task
    return {
        **asdict(embedder.runtime.identity),
        "dimensions": embedder.dimensions,
        "prompt": prompts.prefix(task),
        "titled_prompt": (prompts.titled or "") if task == "document" else "",
        "overlong": embedder.overlong,
        "stored": "float32" if embedder.store is None else embedder.store.form,
    }


def stated_facts(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a collection's passport states, by name; empty without a passport."""
    return {k.removeprefix(OWN): v for k, v in (metadata or {}).items() if k.startswith(OWN)}


def write_passport(path: str | Path, embedder: Embedder | HasEmbedder) -> None:
    """Write the passport of a new index into a JSON file, for stores without metadata.

    Args:
        path: The file, in or next to the index; missing folders are created. A file that is
            there already is compared, and never replaced.
        embedder: Makes the index's document vectors.

    Raises:
        CollectionMismatch: If a passport is there, of another space.
        OSError: If the file cannot be written.
    """
    file = expanded(path)
    text = json.dumps(passport(embedder), indent=1)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        check_passport(file, embedder)


def from_comment(comment: str | None) -> dict[str, Any] | None:
    """Return what a table's comment in a database states, for ``check_passport``.

    Args:
        comment: JSON; None or empty without a comment.

    Raises:
        CollectionMismatch: If it is not JSON, so that no passport was written there.
    """
    try:
        stated = json.loads(comment or "null")
    except ValueError as error:
        raise CollectionMismatch(
            f"the index's comment is no passport: {error}. Make another table for the index, or, "
            "if its vectors are known to be this embedder's, replace the comment: "
            "json.dumps(passport(embeddings))"
        ) from error
    return stated if isinstance(stated, dict) else None


def check_passport(
    stated: Mapping[str, Any] | str | Path | None, embedder: Embedder | HasEmbedder
) -> None:
    """Refuse an index that an embedder does not belong to.

    Embeds one sentence past any store, so other weights under an old name are found out.

    Args:
        stated: The metadata of the store, ``passport`` among them; or the file that
            ``write_passport`` wrote.
        embedder: Should have made its document vectors.

    Raises:
        CollectionMismatch: If there is no passport, or it is another space's, or damaged.
    """
    own = embedder_of(embedder)
    what, metadata = "the index", stated
    if isinstance(stated, (str, Path)):
        file = expanded(stated)
        what = f"the index of {file}"
        try:
            metadata = json.loads(file.read_text("utf-8"))
        except FileNotFoundError:
            metadata = None
        except (OSError, ValueError) as error:
            raise CollectionMismatch(
                f"{what}: its passport cannot be read: {error}; if it is damaged, remove the file "
                "and the index, and fill the index again"
            ) from error
    if not isinstance(metadata, Mapping) or "fingerprint" not in stated_facts(metadata):
        raise CollectionMismatch(
            f"{what} does not say whose vectors it holds: fill a new one, with its passport "
            "(gemma_embed.passport.passport or write_passport)"
        )
    compare_facts(what, metadata, own)


def compare_facts(what: str, metadata: Mapping[str, Any], embedder: Embedder) -> None:
    """Refuse a passport that an embedder would not write now; embeds past its store.

    Args:
        what: Names the index.
        metadata: Its metadata, existing or to be written.
        embedder: Makes the vectors.

    Raises:
        CollectionMismatch: If a fact or the vector of the fixed sentence differs.
    """
    # Passports of before there were forms do not state it.
    there = {"stored": "float32"} | stated_facts(metadata)
    here = _facts(embedder) | {"fingerprint": embedder.fingerprint}
    # For the reader only: the same weights may be in another place.
    del here["source"]
    refuse_differences(what, there, here)
    try:
        probe = base64.b64decode(str(there.get("probe")), validate=True)
        theirs = sound(np.frombuffer(probe, dtype="<f4"), embedder.dimensions)
    except ValueError:
        theirs = None
    if theirs is None:
        raise CollectionMismatch(
            f"{what} has a damaged passport (the vector of its fixed sentence): {_AGAIN}"
        )
    # As a query is, it is embedded past the store.
    ours = embedder.embed_query(_PROBE, embedder.document_task)
    if (likeness := float(theirs @ ours)) < SAME:
        raise CollectionMismatch(
            f"the same sentence has another vector in {what} (cosine {likeness:.4f}): the weights "
            "behind the name have changed. Clear the embedding store (its clear()), which has the "
            f"old vectors too, and {_AGAIN}"
        )


def refuse_differences(what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse a collection that is not as it should be.

    Args:
        what: Names the collection.
        there: What it states, by name.
        here: What it should state.

    Raises:
        CollectionMismatch: If something differs.
    """
    differences = [
        f"{fact} is {there[fact]!r} there and {value!r} here"
        if fact in there
        else f"{fact} is not stated there"
        for fact, value in here.items()
        if there.get(fact) != value
    ]
    if differences:
        raise CollectionMismatch(
            f"{what} holds other vectors than this embedder makes: {'; '.join(differences)}; use "
            "the embedder that filled it, or another collection"
        )


def sound(vector: Any, dimensions: int) -> Vectors | None:
    """A vector of this width and norm 1, neither of them damaged; None for all else."""
    if vector is None or len(vector) != dimensions:
        return None
    numbers = np.asarray(vector, dtype=np.float32)
    # False of NaN, which would compare as like as any.
    return numbers if abs(float(np.linalg.norm(numbers)) - 1) < _NORM_TOLERANCE else None
