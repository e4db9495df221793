"""Removes entries of Redis that cannot be read, so that no walk stops at them.

The Functions remove what they come across; redis/functions/02_damage.lua says how. This is for walks in Python.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from memory_core.records.damage import UNREADABLE
from memory_core.slices import slices
from memory_server.engine.redis_backend import Backend

T = TypeVar("T")
Entry = bytes | str
_SHOWN = 100
_AT_ONCE = 100


async def discard(backend: Backend, key: str, entries: Sequence[Entry], error: BaseException | str) -> None:
    """Remove entries of a key, and report them."""
    why = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    for part in slices(entries, _AT_ONCE):
        await backend.write("rm1_discard", [key], repeatable=True, entries=list(part), why=why[:_SHOWN])


@asynccontextmanager
async def surviving(backend: Backend, key: str, entry: Entry) -> AsyncGenerator[None]:
    """Handle an entry of a walk. If it cannot be read, it is removed, and the block ends without an error."""
    try:
        yield
    except UNREADABLE as error:
        await discard(backend, key, [entry], error)


async def readable(backend: Backend, key: str, entries: Iterable[bytes], read: Callable[[bytes], T]) -> list[T]:
    """Read entries; those that cannot be read are removed."""
    found, damaged = list[T](), list[Entry]()
    why: BaseException | str = ""
    for entry in entries:
        try:
            found.append(read(entry))
        except UNREADABLE as error:
            damaged, why = [*damaged, entry], error
    if damaged:
        await discard(backend, key, damaged, why)
    return found
