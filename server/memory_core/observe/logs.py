"""Logging of a process: text or JSON, with the request id and without any content.

Messages of exceptions may quote content, so they are logged at level DEBUG only; types and source lines always are.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import Literal, TextIO

from memory_core.errors import plain_line
from memory_core.observe import tracing

Format = Literal["text", "json"]
request_id: ContextVar[str] = ContextVar("request_id", default="")  # the id of the current call
_FRAMES = 12
_CAUSES = 5


def configure(level: str, form: Format, *, stream: TextIO | None = None) -> None:
    """Log to `stream` or stderr from `level` on. Replaces any earlier set-up."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter((_Json if form == "json" else _Text)(level == "DEBUG"))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _Text(logging.Formatter):
    def __init__(self, messages: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._messages = messages

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None
        request = request_id.get()
        return super().format(record) + (f" [{request}]" if request and not record.exc_info else "")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return plain_line(super().formatMessage(record))

    def formatException(self, ei: _ExcInfo) -> str:
        return "\n".join(f"  {plain_line(line)}" for line in _describe(ei[1], self._messages))


class _Json(_Text):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request": request_id.get() or None,
            "trace": tracing.current_id() or None,
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            entry |= {"error": type(error).__name__, "raised": list(_describe(error, self._messages))}
        return json.dumps({name: value for name, value in entry.items() if value is not None}, default=str)


_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def _describe(error: BaseException | None, messages: bool) -> Iterator[str]:
    """Yield the type and source lines of an exception and its causes, innermost line last."""
    for _ in range(_CAUSES):
        if error is None:
            return
        name = f"{type(error).__module__}.{type(error).__qualname__}".removeprefix("builtins.")
        yield f"{name}: {error}" if messages else name
        for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]:
            yield f"  {frame.filename}:{frame.lineno} in {frame.name}"
        error = error.__cause__ or error.__context__
