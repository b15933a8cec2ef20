"""What an index is told about its vectors, so that no others are ever mixed in."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch
from gemma_embed.passages import OWN
from gemma_embed.vectors import Vectors

_SCHEMA = 1
_PROBE = "The quick brown fox jumps over the lazy dog."
# Below this two vectors of one text are not rounding apart, but two models: bfloat16 on another
# device stays above 0.999, another quantisation of the same weights may not.
SAME = 0.995
_NORM_TOLERANCE = 1e-3


def passport(embedder: Embedder, former: Mapping[str, Any] | None = None) -> dict[str, str | int]:
    """Return what an index of this embedder's document vectors should say of itself.

    Args:
        embedder: Makes the document vectors.
        former: Metadata of an index that it replaces. If that has the same fingerprint, its
            vector of the fixed sentence is taken over, and nothing is embedded.

    Returns:
        Flat metadata: the fingerprint, what it was made of in readable form, and the vector of a
        fixed sentence. Nothing secret and no address is in it.
    """
    identity = asdict(embedder.runtime.identity)
    prompts = embedder.runtime.prompts
    task = embedder.document_task
    probe = None
    if _field(former, "fingerprint") == embedder.fingerprint:
        probe = _decoded(_field(former, "probe"))
    if probe is None or probe.shape != (embedder.dimensions,):
        probe = embedder.embed([_PROBE])[0]
    fields: dict[str, str | int] = {
        "schema": _SCHEMA,
        "fingerprint": embedder.fingerprint,
        **identity,
        "dimensions": embedder.dimensions,
        "prompt": prompts.prefix(task),
        "titled_prompt": (prompts.titled or "") if task == "document" else "",
        "overlong": embedder.overlong,
        "probe": base64.b64encode(probe.astype("<f4").tobytes()).decode(),
    }
    return {OWN + name: value for name, value in fields.items()}


def has_passport(metadata: Mapping[str, Any] | None) -> bool:
    """Whether an index's metadata holds a passport."""
    return OWN + "fingerprint" in (metadata or {})


def without_passport(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an index's metadata holds beside the passport."""
    return {k: v for k, v in (metadata or {}).items() if not k.startswith(OWN)}


def compare(metadata: Mapping[str, Any] | None, embedder: Embedder, what: str) -> None:
    """Refuse an index that an embedder does not belong to.

    Embeds one sentence, past any store: a server that runs other weights under the name it had
    is found out even if it does not know.

    Args:
        metadata: The index's.
        embedder: About to search or fill it.
        what: The index, for messages.

    Raises:
        CollectionMismatch: If there is no passport, or it differs; names each difference.
    """
    if not has_passport(metadata):
        raise CollectionMismatch(
            f"{what} does not say whose vectors it holds; if they were made by this embedder, "
            "adopt() checks some of them and writes that down; otherwise rebuild() makes them anew"
        )
    held = {k.removeprefix(OWN): v for k, v in (metadata or {}).items()}
    own = passport(embedder.replaced(store=None))
    mine = {k.removeprefix(OWN): v for k, v in own.items()}
    differences = [
        f"{name} is {held.get(name)!r} there and {value!r} here"
        for name, value in mine.items()
        if name not in ("probe", "fingerprint", "source") and held.get(name) != value
    ]
    if held["fingerprint"] != mine["fingerprint"] and not differences:
        differences = ["its fingerprint differs"]
    if not differences:
        there, here = _decoded(held.get("probe")), _decoded(mine["probe"])
        if there is None or here is None or there.shape != here.shape:
            differences = ["its vector of the fixed sentence is damaged"]
        elif (likeness := float(there @ here)) < SAME:
            differences = [
                f"the same sentence has another vector (cosine {likeness:.4f}): the weights behind "
                "the name have changed"
            ]
    if differences:
        raise CollectionMismatch(
            f"{what} holds other vectors than this embedder makes: {'; '.join(differences)}; use "
            "the embedder that filled it, or call rebuild()"
        )


def _field(metadata: Mapping[str, Any] | None, name: str) -> Any:
    return (metadata or {}).get(OWN + name)


def _decoded(probe: object) -> Vectors | None:
    try:
        vector = np.frombuffer(base64.b64decode(str(probe), validate=True), dtype="<f4")
    except ValueError:
        return None
    # A damaged number could be NaN, which compares as like as any.
    return vector if abs(np.linalg.norm(vector) - 1) < _NORM_TOLERANCE else None
