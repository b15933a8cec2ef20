"""Errors survive pickling, and have an index."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from gemma_embed import errors

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, errors.EmbeddingError)
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_survives_pickling(kind: type[errors.EmbeddingError]) -> None:
    error = kind("what failed", index=3) if kind is not errors.EmbeddingError else kind("x")
    for attribute in ("tokens", "limit", "attempts", "elapsed"):
        if hasattr(error, attribute):
            setattr(error, attribute, 5)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_the_index_is_part_of_the_message() -> None:
    error = errors.BadResponse("it broke", index=4)
    assert str(error) == "text at index 4: it broke"
    error.index = 9
    assert str(error) == "text at index 9: it broke"


def test_the_documented_tree_is_the_class_tree() -> None:
    for kind in KINDS:
        assert kind.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.InvalidInput, ValueError),
        (errors.ConfigurationError, ValueError),
        (errors.MissingDependency, ImportError),
    ],
)
def test_callers_may_catch_the_builtin(kind: type, builtin: type) -> None:
    assert issubclass(kind, builtin)
