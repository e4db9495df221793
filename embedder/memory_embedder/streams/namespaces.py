"""Knows which namespaces this sidecar may serve, because vectors of two models must never mix in one."""

from __future__ import annotations

import asyncio
import logging

from memory_core import keys
from memory_core.connection import Client
from memory_core.errors import InvalidArgument, ModelMismatch, echo
from memory_core.index import check_model
from memory_core.keys import Keys
from memory_core.names import check_name
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams.retry import is_outage

_log = logging.getLogger(__name__)


class Namespaces:
    """Namespaces found by walks and bells, those with jobs, and those refused for their model."""

    def __init__(self, client: Client, encoder: Encoder) -> None:
        self._client = client
        self._encoder = encoder
        self._served: dict[str, Keys] = {}
        self._refused: dict[str, ModelMismatch] = {}
        self._busy: dict[str, Keys] = {}
        self._with_jobs: dict[str, Keys] = {}
        self.changed = asyncio.Event()
        self.queue_depth = 0

    @property
    def served(self) -> list[Keys]:
        """Namespaces of this sidecar's model."""
        return list(self._served.values())

    @property
    def with_jobs(self) -> list[Keys]:
        """Namespaces that had jobs, delivered or not, when last looked at or heard of."""
        return list(self._with_jobs.values())

    @property
    def refusals(self) -> str:
        """Why namespaces are left to other sidecars; empty when none is."""
        return "; ".join(error.message for error in self._refused.values())

    @property
    def refused(self) -> int:
        """How many namespaces are left to other sidecars."""
        return len(self._refused)

    async def check_all(self, *, beside: bool = False) -> None:
        """Check every known namespace.

        Raises:
            ModelMismatch: all are indexed for other models, and nobody said that this is wanted.
        """
        for name in await self._client.smembers(keys.NAMESPACES):
            await self._admit(name.decode(), quietly=not beside)
        if self._refused and not self._served and not beside:
            raise next(iter(self._refused.values()))

    async def walk(self) -> None:
        """Find namespaces, and jobs in them, that a bell did not name."""
        for name in await self._client.smembers(keys.NAMESPACES):
            await self._admit(name.decode())
        served = self.served
        async with self._client.pipeline(transaction=False) as pipe:
            for names in served:
                pipe.xlen(names.jobs(self._encoder.name))
            lengths = [_length(answer) for answer in await pipe.execute(raise_on_error=False)]
        self.queue_depth = sum(lengths)
        self._with_jobs.clear()
        for names, length in zip(served, lengths, strict=True):
            if length:
                self._mark(names)

    async def ring(self, name: str) -> None:
        """Hear that a namespace has jobs."""
        try:
            check_name(name, "namespace")
        except InvalidArgument:
            _log.warning("a bell named %s, which is no namespace", echo(name))
            return
        if names := await self._admit(name):
            self._mark(names)

    def take(self) -> Keys | None:
        """The next namespace to drain, in turn; None when all are quiet."""
        if not self._busy:
            self.changed.clear()
            return None
        return self._busy.pop(next(iter(self._busy)))

    def put_back(self, names: Keys) -> None:
        """Note that a namespace has more jobs than were read."""
        self._mark(names)

    def _mark(self, names: Keys) -> None:
        self._busy.setdefault(names.namespace, names)
        self._with_jobs[names.namespace] = names
        self.changed.set()

    async def _admit(self, name: str, *, quietly: bool = False) -> Keys | None:
        if name in self._served:
            return self._served[name]
        names = Keys(name)
        try:
            await check_model(self._client, names, self._encoder.name, self._encoder.dimension)
        except ModelMismatch as error:
            if name not in self._refused and not quietly:
                _log.warning("%s; it is left to another sidecar", error.message)
            self._refused[name] = error
            return None
        self._refused.pop(name, None)
        self._served[name] = names
        return names


def _length(answer: int | Exception) -> int:
    """Take a stream whose shard is away for empty: the others are not to wait for it."""
    if isinstance(answer, Exception):
        if not is_outage(answer):
            raise answer
        return 0
    return answer
