"""What makes two vectors comparable."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Identity:
    """Everything about a runtime that decides the numbers it returns.

    Device, batch size and host are left out, since they change a vector by rounding at most.
    Nothing secret belongs here: fingerprints are written into indexes.

    Attributes:
        model: Name in the model table.
        source: What was loaded: a hub id, a folder's name, a server's tag.
        revision: Which weights: a commit, a server's digest, or a hash of the files.
        runtime: What computes, with the server's era where that matters.
        precision: dtype or quantisation.
        max_tokens: Tokens read of a text.
    """

    model: str
    source: str
    revision: str
    runtime: str
    precision: str
    max_tokens: int


def fingerprint(identity: Identity, settings: Mapping[str, object]) -> str:
    """Return a short name for a vector space.

    Args:
        identity: The runtime's.
        settings: What else decides a vector: prompt, dimensions, policies. JSON values.

    Returns:
        32 hexadecimal digits, the same on every machine for equal arguments. The source is left
        out, since a folder may be moved; the revision names its weights.
    """
    parts = asdict(identity) | dict(settings)
    del parts["source"]
    canonical = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
