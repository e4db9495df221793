"""Tracks in-flight reads, so that a revoke can wait for those that began before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from memory_server.engine.request_context import RequestContext

P = ParamSpec("P")
T = TypeVar("T")


class InflightReads:
    """The reads of this process by namespace and agent."""

    def __init__(self) -> None:
        self._under_way: dict[tuple[str, str], set[asyncio.Event]] = {}

    @contextmanager
    def reading(self, namespace: str, agent: str) -> Generator[None]:
        """Track a read while inside."""
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
        """Wait for the reads that are under way now. Returns whether they ended in time."""
        reads = [done for agent in agents for done in self._under_way.get((namespace, agent), ())]
        try:
            async with asyncio.timeout(patience):
                for done in reads:
                    await done.wait()
        except TimeoutError:
            return False
        return True


class TracksReads(Protocol):
    """A service whose reads are tracked."""

    @property
    def inflight_reads(self) -> InflightReads: ...


S = TypeVar("S", bound=TracksReads)


def reads(
    use_case: Callable[Concatenate[S, RequestContext, P], Awaitable[T]],
) -> Callable[Concatenate[S, RequestContext, P], Awaitable[T]]:
    """Decorate a use case that shows memories to its caller."""

    @wraps(use_case)
    async def tracked(service: S, request: RequestContext, *args: P.args, **kwargs: P.kwargs) -> T:
        with service.inflight_reads.reading(request.caller.namespace, request.caller.agent):
            return await use_case(service, request, *args, **kwargs)

    return tracked
