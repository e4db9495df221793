"""Exports the audit as JSON lines (a head, the seals, the entries), and checks such a file without Redis."""

from __future__ import annotations

import io
import json
import re
from collections.abc import AsyncGenerator, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import zstandard

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.signed_entry import SignedEntry
from memory_core.errors import InvalidArgument
from memory_core.records import bounded_files
from memory_core.records.bounded_json import has_too_many_values
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.security.audit import reader as trail
from memory_server.security.audit.seals import Seal, read_seal
from memory_server.security.audit.verifier import AuditCounts, AuditReport, verify

FORM = 1
_STREAM_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
_BYTES = "surrogateescape"
_MAX_LINE, _MAX_TOKENS = 16 << 20, 1_000_000


async def lines(client: Client, keys: Keys) -> AsyncGenerator[str]:
    """Yield the whole audit of a namespace, line by line."""
    counted = await trail.counters(client, keys)
    yield _line({"audit": FORM, "namespace": keys.namespace, **asdict(counted)})
    async for seal in trail.walk_seals(client, keys):
        yield _line({"seal": None} if seal is None else {"seal": seal.id.decode(), "fields": seal.fields()})
    async for page in trail.walk(client, keys):
        for entry in page:
            yield _line({"entry": entry.id.decode(), "fields": [part.decode(errors=_BYTES) for part in entry.parts]})


def check_file(path: Path, keyring: Keyring, expect: str | None = None) -> AuditReport:
    """Check an exported file; raises InvalidArgument if it is unreadable or not an export."""
    with opened(path) as file:
        rows = _rows(file)
        head = next(rows, {})
        given, sealed = head.get("given", 0), head.get("sealed", 0)
        is_counted = isinstance(given, int) and isinstance(sealed, int)
        if head.get("audit") != FORM or not isinstance(head.get("namespace"), str) or not is_counted:
            raise InvalidArgument(f"{path} is not an audit export", hint="make one with `redis-memory audit export`")
        seals, first = _seals(rows)
        entries = (SignedEntry(_id(row.get("entry")), tuple(_parts(row))) for row in chain(first, rows))
        return verify(head["namespace"], entries, seals, AuditCounts(given, sealed), keyring, expect)


@contextmanager
def opened(path: Path) -> Generator[IO[str]]:
    """Open a file for reading, and decompress a .zst file; raises InvalidArgument if it is unreadable."""
    try:
        with bounded_files.opened(path) as file:
            yield io.TextIOWrapper(file, encoding="ascii")
    except (OSError, ValueError, RecursionError, zstandard.ZstdError) as error:
        raise InvalidArgument(f"cannot read {path}: {type(error).__name__}", hint="export it again") from None


_line = partial(json.dumps, separators=(",", ":"))


def _rows(file: IO[str]) -> Generator[dict[str, Any]]:
    for number, text in enumerate(iter(partial(file.readline, _MAX_LINE + 1), ""), 1):
        if len(text) > _MAX_LINE:
            raise InvalidArgument(f"line {number} is longer than {_MAX_LINE} characters")
        if has_too_many_values(text, _MAX_TOKENS):
            raise InvalidArgument(f"line {number} has too many JSON values")
        row = json.loads(text)
        if not isinstance(row, dict):
            raise InvalidArgument(f"line {number} is not a JSON object")
        yield row


def _seals(rows: Iterable[dict[str, Any]]) -> tuple[list[Seal | None], list[dict[str, Any]]]:
    """Return the seals, and the row that follows the last one."""
    seals: list[Seal | None] = []
    for row in rows:
        if "seal" not in row:
            return seals, [row]
        seals.append(read_seal(_id(row["seal"]), _parts(row)) if row["seal"] else None)
    return seals, []


def _id(given: Any) -> bytes:
    if not isinstance(given, str) or not _STREAM_ID.fullmatch(given):
        raise InvalidArgument("a line has no valid stream id", hint="export it again")
    return given.encode()


def _parts(row: dict[str, Any]) -> Sequence[bytes]:
    fields = row.get("fields")
    if not isinstance(fields, list) or not all(isinstance(part, str) for part in fields):
        raise InvalidArgument("a line has no list of fields", hint="export it again")
    return [str(part).encode(errors=_BYTES) for part in fields]
