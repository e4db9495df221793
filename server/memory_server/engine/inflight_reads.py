"""Knows which reads are under way, so that a revoke returns only when none that began before it can still answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from memory_server.engine.principals import Caller
    from memory_server.service import Service

P = ParamSpec("P")
T = TypeVar("T")


class Readers:
    """The reads of this process by namespace and agent."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], set[asyncio.Event]] = {}

    @contextmanager
    def reading(self, namespace: str, agent: str) -> Generator[None]:
        """Count as under way while inside."""
        done = asyncio.Event()
        others = self._under_way.setdefault((namespace, agent), set())
        others.add(done)
        try:
            yield
        finally:
            done.set()
            others.discard(done)
            if not others:
                self._under_way.pop((namespace, agent), None)

    async def finished(self, namespace: str, agents: Iterable[str], patience: float) -> bool:
        """Wait until the reads that are under way now have ended; whether they did so in time."""
        reads = [done for agent in agents for done in self._under_way.get((namespace, agent), ())]
        try:
            async with asyncio.timeout(patience):
                for done in reads:
                    await done.wait()
        except TimeoutError:
            return False
        return True


def reads(
    use_case: Callable[Concatenate[Service, Caller, P], Awaitable[T]],
) -> Callable[Concatenate[Service, Caller, P], Awaitable[T]]:
    """Mark a use case as one that shows memories to its caller."""

    @wraps(use_case)
    async def tracked(service: Service, caller: Caller, *args: P.args, **kwargs: P.kwargs) -> T:
        with service.readers.reading(caller.namespace, caller.agent):
            return await use_case(service, caller, *args, **kwargs)

    return tracked
