"""What the log contains of an exception."""

from __future__ import annotations

import io
import logging
from collections.abc import Generator

import pytest

from memory_core.errors import InvalidArgument
from memory_core.observe import logs

CANARY = "hunter2-canary"


@pytest.fixture
def restored() -> Generator[None]:
    """Restore the logging configuration."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("form", ["text", "json"])
def test_exception_text_is_logged_only_when_debugging(form: logs.Format) -> None:
    short, debug = io.StringIO(), io.StringIO()
    for level, stream in (("INFO", short), ("DEBUG", debug)):
        logs.configure(level, form, stream=stream)
        try:
            try:
                raise ValueError(f"inner {CANARY}")
            except ValueError as error:
                raise InvalidArgument(f"outer {CANARY}") from error
        except InvalidArgument:
            logging.getLogger("x").exception("a tool failed")
    assert CANARY not in short.getvalue()
    assert "InvalidArgument" in short.getvalue()
    assert "ValueError" in short.getvalue()
    assert "test_logs.py" in short.getvalue()
    assert f"inner {CANARY}" in debug.getvalue()
