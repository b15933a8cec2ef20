"""The collections of one name, each of its own vector space."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.place import Place
from gemma_embed.errors import CollectionDamaged
from gemma_embed.passport import stated_facts

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

_DIGITS = 8


@dataclass(frozen=True)
class Generation:
    """A collection of one vector space among those of an index.

    Attributes:
        name: The collection's.
        fingerprint: Name of the vector space.
        facts: What its passport states: model, precision, dimensions, prompt and so on.
        rows: How many it holds; None if a writer is at work on it or was killed, or if Chroma
            cannot read it.
        current: Whether it is the embedder's.
    """

    name: str
    fingerprint: str
    facts: Mapping[str, Any]
    rows: int | None
    current: bool


def name_of(index: str, fingerprint: str) -> str:
    """The name of an index's collection for a vector space."""
    return f"{index}-{fingerprint[:_DIGITS]}"


def generations_of(index: str, client: ClientAPI) -> dict[str, Collection]:
    """The collections of an index by their names, in the order of these."""
    return {
        each.name: each
        for each in sorted(client.list_collections(), key=lambda each: each.name)
        if each.name == name_of(index, stated_facts(each.metadata).get("fingerprint", ""))
    }


def described(collection: Collection, place: Place, *, current: bool) -> Generation:
    """Describe a collection; one with unfinished writing is not read."""
    facts = stated_facts(collection.metadata)
    facts.pop("probe", None)
    rows: int | None = None
    if not place.is_marked(collection.name):
        with suppress(CollectionDamaged), place.explained(collection.name):
            rows = collection.count()
    return Generation(collection.name, facts.pop("fingerprint"), facts, rows, current)
