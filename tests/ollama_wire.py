"""Requests and replies of the server in ``ollama_server``, encoded and parsed as Go does.

Everything here is a value or a pure function. The literal messages are those of Ollama, which is
written in Go and passes messages of Go's libraries on to its clients.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

JSON = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"

_KINDS = {
    str: "string",
    bool: "bool",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
}
_NAME = re.compile(r"([\w.-]+(:\d+)?/)?(\w[\w.-]*/)?\w[\w.-]*(:\w[\w.-]*)?", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


@dataclass
class Request:
    """A request that the server got.

    Attributes:
        method: ``GET``, ``POST``.
        path: Path without query.
        headers: Names in lower case.
        body: The bytes.
        time: ``time.monotonic()`` when the body had been read.
        in_flight: Requests in flight at that moment, including this one.
        gone: Returns whether the client has closed the connection.
        reply: The reply, also if the client has disconnected; None until then.
        written: Bytes of the body that were written.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    time: float
    in_flight: int
    gone: Callable[[], bool] = field(repr=False, default=lambda: False)
    reply: Reply | None = None
    written: int = 0

    @property
    def status(self) -> int:
        """Status of the reply; 0 until there is one, and for a reset connection."""
        return self.reply.status if self.reply else 0

    @property
    def json(self) -> Any:
        """The body parsed; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Reply:
    """A reply of the server, and the faults in sending it.

    Attributes:
        status: HTTP status.
        body: The complete body.
        content_type: Its media type; not sent for an empty body.
        headers: More headers.
        stall: Seconds before the first byte.
        pause: Seconds between pieces of the body.
        piece: Bytes of a piece; None to choose by the kind of body.
        head_pause: Seconds between the bytes of status line and headers.
        length: Value of ``Content-Length``; None for the real length.
        repeats: How often the body is repeated, within one reply.
        sent: Bytes of the body after which the connection is closed; None sends all.
        reset: Reset the connection instead of answering.
    """

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    stall: float = 0.0
    pause: float = 0.0
    piece: int | None = None
    head_pause: float = 0.0
    length: int | None = None
    repeats: int = 1
    sent: int | None = None
    reset: bool = False

    @property
    def pieces(self) -> list[bytes]:
        """The part of the body to send, in the pieces between which there is a pause."""
        body = self.body[: self.sent]
        if self.content_type == NDJSON:
            return body.splitlines(keepends=True)
        step = self.piece or max(1, len(body) // (10 if self.pause else 1))
        return [body[start : start + step] for start in range(0, len(body), step)]


class Refusal(Exception):
    """An error that the server reports to its client."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def error_reply(path: str, status: int, text: str) -> Reply:
    """Return an error in the shape of the API that ``path`` belongs to."""
    if not path.startswith("/v1/"):
        return Reply(status, go_json({"error": text}))
    kinds = {400: "invalid_request_error", 404: "not_found_error"}
    error = {"message": text, "type": kinds.get(status, "api_error"), "param": None, "code": None}
    return Reply(status, go_json({"error": error}))


def go_json(value: object) -> bytes:
    """Encode as Go's ``encoding/json`` does: compact, UTF-8, safe to paste into HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def float32(values: Sequence[float]) -> list[float]:
    """Round to float32, as doubles with the shortest digits that give the same float32.

    Go prints those digits. Python prints the same for these doubles, except for numbers below
    1e-4, for which it uses an exponent earlier.
    """
    exact = array("f", values)
    distinct = sorted(set(exact))
    shortest = {value: float(f"{value:.9g}") for value in distinct}
    for digits in (8, 7, 6):
        shorter = [float(f"{value:.{digits}g}") for value in distinct]
        rounded = zip(distinct, shorter, array("f", shorter), strict=True)
        shortest |= {value: short for value, short, same in rounded if same == value}
    return [shortest[value] for value in exact]


def parse_body(body: bytes, struct: str, fields: Mapping[str, tuple[str, type]]) -> dict[str, Any]:
    """Parse a request's JSON as Go would bind it to a struct.

    Args:
        body: The bytes.
        struct: Name of Ollama's struct, for error texts.
        fields: For each field that has a type: Go's name of the type, and the Python type.

    Raises:
        Refusal: 400 with the text of Go's JSON decoder.
    """
    text = body.decode(errors="replace").strip()
    if not text:
        raise Refusal(400, "missing request body")
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        raise Refusal(400, _syntax_error(text, error)) from None
    if not isinstance(value, dict):
        kind = _KINDS.get(type(value), "null")
        raise Refusal(400, f"json: cannot unmarshal {kind} into Go value of type api.{struct}")
    for name, (go_type, python_type) in fields.items():
        item = value.get(name)
        if item is not None and type(item) is not python_type:
            kind = f"number {item}" if isinstance(item, float) else _KINDS[type(item)]
            target = f"Go struct field {struct}.{name} of type {go_type}"
            raise Refusal(400, f"json: cannot unmarshal {kind} into {target}")
    return value


def _syntax_error(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text) or error.msg.startswith("Unterminated"):
        return "unexpected EOF"
    wanted = {
        "Expecting property name enclosed in double quotes": "looking for beginning of object "
        "key string",
        "Expecting ':' delimiter": "after object key",
        "Expecting ',' delimiter": "after object key:value pair",
    }
    where = wanted.get(error.msg, "looking for beginning of value")
    return f"invalid character '{text[error.pos]}' {where}"


def keep_alive_seconds(value: object) -> float | None:
    """Parse ``keep_alive``: seconds, or a Go duration. Negative means forever, None means unset.

    Raises:
        Refusal: 400 with the text of Go's ``time.ParseDuration``.
    """
    if value is None:
        return None
    if isinstance(value, str):
        seconds = _parse_duration(value)
    elif isinstance(value, (int, float)):
        seconds = float(value)
    else:
        raise Refusal(400, f"Unsupported type: '{_KINDS[type(value)]}'")
    return float("inf") if seconds < 0 else seconds


def _parse_duration(text: str) -> float:
    unsigned = text.removeprefix("-") if text.startswith("-") else text.removeprefix("+")
    if unsigned == "0":
        return 0.0
    parts = _DURATION.findall(unsigned)
    if not parts or "".join(number + unit for number, unit in parts) != unsigned:
        raise Refusal(400, f'time: invalid duration "{text}"')
    seconds = 0.0
    for number, unit in parts:
        if not unit:
            raise Refusal(400, f'time: missing unit in duration "{text}"')
        if unit not in _SECONDS:
            raise Refusal(400, f'time: unknown unit "{unit}" in duration "{text}"')
        seconds += float(number) * _SECONDS[unit]
    return -seconds if text.startswith("-") else seconds


def valid_name(name: str) -> bool:
    """Return whether Ollama accepts this as a model's name."""
    return _NAME.fullmatch(name) is not None


def full_name(name: str) -> str:
    """Return the canonical form of a model's name."""
    name = name.lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def release(version: str) -> tuple[int, ...] | None:
    """Return the numbers of a version; None for an uninformative one, such as a source build's."""
    match = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    numbers = tuple(map(int, match.groups())) if match else (0, 0, 0)
    return numbers if any(numbers) else None
