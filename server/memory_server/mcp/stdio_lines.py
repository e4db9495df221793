"""Reads a client's lines from stdin. Lines have a bounded length and are strict UTF-8, and bad ones get an error.

The SDK's own reader accepts lines of any length, replaces bytes that are not UTF-8, and drops what is not JSON-RPC.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, BinaryIO

import anyio.to_thread
from mcp.shared.message import SessionMessage
from mcp_types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, JSONRPCNotification
from mcp_types import jsonrpc_message_adapter as message_adapter
from pydantic import ValidationError
from pydantic_core import from_json

from memory_core.records.bounded_json import has_too_many_values

_SKIPPED_AT_ONCE = 65_536
_SHOWN_ID_BYTES = 128


class _Bad(Exception):
    """A line that is not a message."""

    def __init__(self, code: int, message: str, request_id: str | int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


class Lines:
    """The lines that are messages; other lines are answered with an error."""

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.answer: Callable[[SessionMessage], Awaitable[Any]] | None = None

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield lines until the client closes its end."""
        while line := await anyio.to_thread.run_sync(self._file.readline, self._max_bytes + 1):
            try:
                if text := await self._text(line):
                    yield text
            except _Bad as bad:
                await self._refuse(bad)

    async def _text(self, line: bytes) -> str:
        """Return the message of a line; empty for an empty line."""
        if len(line) > self._max_bytes and not line.endswith(b"\n"):
            await anyio.to_thread.run_sync(self._skip)
            raise _Bad(INVALID_REQUEST, f"the line is longer than {self._max_bytes} bytes")
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            raise _Bad(PARSE_ERROR, "the line is not UTF-8") from None
        if text:
            _check(text)
        return text

    def _skip(self) -> None:
        while (part := self._file.readline(_SKIPPED_AT_ONCE)) and not part.endswith(b"\n"):
            pass

    async def _refuse(self, bad: _Bad) -> None:
        assert self.answer is not None
        error = ErrorData(code=bad.code, message=str(bad))
        await self.answer(SessionMessage(JSONRPCError(jsonrpc="2.0", id=bad.request_id, error=error)))


def claim_stdin() -> BinaryIO:
    """Take stdin for the protocol, so that nothing else in the process, and no child, reads from it."""
    sys.stdin.close()
    own = os.fdopen(os.dup(0), "rb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return own


def _check(text: str) -> None:
    if has_too_many_values(text):
        raise _Bad(INVALID_REQUEST, "the line has too many JSON values")
    try:
        message = message_adapter.validate_json(text, by_name=False)
        if isinstance(message, JSONRPCNotification) and "id" in from_json(text):
            raise _Bad(INVALID_REQUEST, "the id is neither a string nor a whole number")
    except ValidationError:
        try:
            value = from_json(text)
        except ValueError:
            raise _Bad(PARSE_ERROR, "the line is not JSON, or nested too deeply") from None
        raise _Bad(INVALID_REQUEST, "the line is not a JSON-RPC message", _id_of(value)) from None


def _id_of(value: Any) -> str | int | None:
    given = value.get("id") if isinstance(value, dict) else None
    if isinstance(given, bool) or not isinstance(given, str | int):
        return None
    return given if len(str(given)) <= _SHOWN_ID_BYTES else None
