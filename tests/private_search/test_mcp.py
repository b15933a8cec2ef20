"""The MCP server, through the SDK's own client in this process."""

# ruff: noqa: E402 - imports that an extra is needed for

from __future__ import annotations

from pathlib import Path

import pytest

mcp = pytest.importorskip("mcp", reason='the server needs: pip install "gemma-embed[search]"')

from private_search.files import Folder
from private_search.library import Library
from private_search.mcp_server import server


@pytest.fixture
def client(shelf: Library) -> mcp.Client:
    return mcp.Client(server(lambda: Library(shelf.folder, shelf.embedder.runtime)))


async def test_search_and_fetch(client: mcp.Client) -> None:
    async with client:
        tools = (await client.list_tools()).tools
        assert {tool.name for tool in tools} == {"search", "fetch"}
        assert all(tool.annotations.read_only_hint for tool in tools)
        found = await client.call_tool("search", {"query": "When does the night ferry leave?"})
        assert found.structured_content["answerable"]
        best = found.structured_content["results"][0]
        assert "20:45" in best["text"]
        fetched = (await client.call_tool("fetch", {"id": best["id"]})).structured_content
        assert fetched["title"] == best["title"]
        assert len(fetched["text"]) >= len(best["text"])


async def test_filters_reach_the_search(client: mcp.Client) -> None:
    async with client:
        arguments = {"query": "the roof", "kind": "mail", "after": "2026-01-01", "limit": 3}
        found = (await client.call_tool("search", arguments)).structured_content
        assert {each["kind"] for each in found["results"]} == {"mail"}
        assert all(each["date"] >= "2026-01-01" for each in found["results"])


async def test_what_is_not_there_is_said(client: mcp.Client) -> None:
    async with client:
        for name in ("999999", "../etc"):
            fetched = await client.call_tool("fetch", {"id": name})
            assert fetched.is_error
            assert "search again" in fetched.content[0].text
        nothing = await client.call_tool("search", {"query": "x", "sender": "nobody at all"})
        assert nothing.structured_content == {"answerable": False, "results": []}


async def test_what_is_indexed_meanwhile_is_found(opened, tmp_path: Path, bundled) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "cat.md").write_text("# The cat\n\nThe cat sleeps on the piano.")
    library = opened(Folder(notes))
    library.update()
    async with mcp.Client(server(lambda: Library(tmp_path / "library", bundled))) as client:
        for word in ("cat", "boiler"):
            found = await client.call_tool("search", {"query": f"Where is the {word}?"})
            assert f"The {word}" in {each["title"] for each in found.structured_content["results"]}
            (notes / "boiler.md").write_text("# The boiler\n\nThe boiler is in the cellar.")
            library.update()
