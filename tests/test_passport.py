"""A passport beside an index: written once, compared each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakes import FakeRuntime

from gemma_embed import Embedder
from gemma_embed.errors import CollectionMismatch
from gemma_embed.passport import check_passport, from_comment, passport, write_passport
from langchain_gemma_embed import GemmaEmbeddings


def test_the_same_embedder_is_accepted(fake: FakeRuntime, tmp_path: Path) -> None:
    file = tmp_path / "new" / "passport.json"
    embedder = Embedder(fake, dimensions=128)
    write_passport(file, GemmaEmbeddings(fake, dimensions=128))
    written = file.read_bytes()
    write_passport(file, embedder)
    assert file.read_bytes() == written
    check_passport(file, embedder)
    check_passport(str(file), embedder)
    check_passport(passport(embedder) | {"another's": 1}, embedder)


def test_another_space_is_refused(fake: FakeRuntime, tmp_path: Path) -> None:
    file = tmp_path / "passport.json"
    write_passport(file, Embedder(fake))
    others = {
        "dimensions is 768 there and 128 here": Embedder(fake, dimensions=128),
        "prompt is": Embedder(fake, document_task="clustering"),
        "overlong is": Embedder(fake, overlong="split"),
        "max_tokens is": Embedder(FakeRuntime(max_tokens=100)),
    }
    for said, other in others.items():
        for call in (check_passport, write_passport):
            with pytest.raises(CollectionMismatch, match=said) as caught:
                call(file, other)
            assert "passport.json" in str(caught.value)


def test_other_weights_under_the_same_name_are_refused(fake: FakeRuntime) -> None:
    stated = passport(Embedder(fake))

    class Changed(FakeRuntime):
        def embed(self, texts, *, truncate=False):  # type: ignore[no-untyped-def]
            yield from super().embed([text[::-1] for text in texts], truncate=truncate)

    with pytest.raises(CollectionMismatch, match="weights behind the name have changed"):
        check_passport(stated, Embedder(Changed()))


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"a": 1}', "\udcff"])
def test_no_passport_is_refused(fake: FakeRuntime, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "passport.json"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(CollectionMismatch, match=r"does not say whose|cannot be read.*remove"):
        check_passport(file, Embedder(fake))


def test_a_damaged_passport_is_refused(fake: FakeRuntime) -> None:
    stated = json.loads(json.dumps(passport(Embedder(fake))))
    for probe in ("", "not base64", stated["gemma_embed.probe"][:-8]):
        with pytest.raises(CollectionMismatch, match="damaged passport"):
            check_passport(stated | {"gemma_embed.probe": probe}, Embedder(fake))
    for nothing in (None, {}):
        with pytest.raises(CollectionMismatch, match="does not say"):
            check_passport(nothing, Embedder(fake))


def test_a_comment_that_is_no_passport_is_refused(fake: FakeRuntime) -> None:
    embedder = Embedder(fake)
    check_passport(from_comment(json.dumps(passport(embedder))), embedder)
    with pytest.raises(CollectionMismatch, match="no passport"):
        from_comment("our secret notes")
    for comment in (None, "", "7", '"our notes"'):
        with pytest.raises(CollectionMismatch, match="does not say whose"):
            check_passport(from_comment(comment), embedder)
