"""What a collection says of its vectors, so that no others are ever mixed in."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gemma_embed.chroma.nodes import embedded_content
from gemma_embed.chroma.stored import SAME, sound
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionMismatch, ConfigurationError
from gemma_embed.passages import OWN, embedded_parts, split_title

if TYPE_CHECKING:
    from chromadb import Collection

_SCHEMA = 2
_PROBE = "The quick brown fox jumps over the lazy dog."
_SAMPLE = 16
_SAME_DIRECTION = 1e-3


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


def passport(embedder: Embedder, title_key: str) -> dict[str, str | int]:
    """Return flat metadata for a collection of an embedder's document vectors.

    Args:
        embedder: Makes the document vectors.
        title_key: The metadata key of titles in it.

    Returns:
        The fingerprint, what it was made of in readable form, and the vector of a fixed sentence,
        from the store if it is there. Without secrets and addresses.
    """
    probe = embedder.embed([_PROBE])[0]
    stated: dict[str, str | int] = {
        "schema": _SCHEMA,
        "fingerprint": embedder.fingerprint,
        **_facts(embedder),
        "title_key": title_key,
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
    }


def stated_facts(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a collection's passport states, by name; empty without a passport."""
    return {k.removeprefix(OWN): v for k, v in (metadata or {}).items() if k.startswith(OWN)}


def check_collection(collection: Collection, embedder: Embedder | HasEmbedder) -> None:
    """Refuse a collection that an embedder does not belong to.

    For collections that were opened or filled by LangChain's, LlamaIndex's or Chroma's classes,
    too. Embeds one sentence past any store, so other weights under an old name are found out. Of
    a collection without a passport up to 16 rows are embedded again and compared.

    Raises:
        CollectionMismatch: If it holds vectors of another space, or its distance is not cosine.
    """
    own = embedder_of(embedder)
    space = _space(collection)
    if space != "cosine":
        raise CollectionMismatch(
            f"the collection {collection.name!r} measures {space!r}, not 'cosine', which both "
            "frameworks' scores are made for: create it with configuration="
            "{'hnsw': {'space': 'cosine'}}, or let ChromaIndex create it"
        )
    if "fingerprint" in stated_facts(collection.metadata):
        compare_facts(collection.name, collection.metadata, own)
    else:
        # Settings first: two tasks of a small model may be closer than two devices.
        from gemma_embed.chroma.function import GemmaEmbeddingFunction

        function = collection.configuration.get("embedding_function")
        if isinstance(function, GemmaEmbeddingFunction):
            here = GemmaEmbeddingFunction(own)
            here.validate_config_update(function.get_config(), here.get_config())
        _compare_rows(collection, own)


def compare_facts(name: str, metadata: Mapping[str, Any], embedder: Embedder) -> None:
    """Refuse a passport that an embedder would not write now; embeds past its store.

    Args:
        name: The collection's.
        metadata: Its metadata, existing or to be written.
        embedder: Makes the vectors.

    Raises:
        CollectionMismatch: If a fact or the vector of the fixed sentence differs.
    """
    there = stated_facts(metadata)
    here = _facts(embedder) | {"fingerprint": embedder.fingerprint}
    # For the reader only: the same weights may be in another place.
    del here["source"]
    refuse_differences(f"the collection {name!r}", there, here)
    try:
        probe = base64.b64decode(str(there.get("probe")), validate=True)
        theirs = sound(np.frombuffer(probe, dtype="<f4"), embedder.dimensions)
    except ValueError:
        theirs = None
    if theirs is None:
        raise CollectionMismatch(
            f"the collection {name!r} has a damaged passport (the vector of its fixed "
            "sentence): call recreate(passages)"
        )
    # As a query is, it is embedded past the store.
    ours = embedder.embed_query(_PROBE, embedder.document_task)
    if (likeness := float(theirs @ ours)) < SAME:
        raise CollectionMismatch(
            f"the same sentence has another vector in the collection {name!r} (cosine "
            f"{likeness:.4f}): the weights behind the name have changed. Clear the embedding store "
            "(its clear()), which has the old vectors too, and call recreate(passages)"
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


def _space(collection: Collection) -> str | None:
    configured = (collection.configuration.get("hnsw") or {}).get("space")
    # Chroma 0.4 to 0.6 wrote it here. A later Chroma may search by it and report a default.
    stated = (collection.metadata or {}).get("hnsw:space")
    if stated in (None, configured):
        return configured
    one = collection.get(limit=1, include=["embeddings"])["embeddings"]
    if one is None or not len(one):
        return str(stated)
    longer = 3 * np.asarray(one)
    near = collection.query(query_embeddings=longer, n_results=1, include=["distances"])
    distance = (near["distances"] or [[np.inf]])[0][0]
    return "cosine" if abs(distance) < _SAME_DIRECTION else f"{stated} or {configured}"


def _compare_rows(collection: Collection, embedder: Embedder) -> None:
    got: Any = collection.get(limit=_SAMPLE, include=["documents", "metadatas", "embeddings"])
    if not got["ids"]:
        return
    parts = [
        embedded_parts(metadata or {}, text or "")
        # As the LlamaIndex adapter does with a title that GemmaTitles put there.
        or split_title(embedded_content(row, metadata or {}, text or ""))
        for row, text, metadata in zip(got["ids"], got["documents"], got["metadatas"], strict=True)
    ]
    texts, titles = [text for text, _ in parts], [title for _, title in parts]
    ours = embedder.replaced(store=None).embed(
        texts, titles=titles if embedder.takes_titles else None
    )
    theirs = np.asarray(got["embeddings"], dtype=np.float32)
    likeness = -1.0
    if theirs.shape == ours.shape:
        norms = np.maximum(np.linalg.norm(theirs, axis=1), 1e-12)
        likeness = float((np.sum(theirs * ours, axis=1) / norms).min())
    if not likeness >= SAME:
        raise CollectionMismatch(
            f"the collection {collection.name!r} does not say whose vectors it holds, and of "
            f"{len(texts)} rows, embedded again, one has a cosine of {likeness:.3f} to its vector: "
            "other weights, prompt or width; ingest the documents into a ChromaIndex"
        )
