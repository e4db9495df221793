"""The namespaces that this sidecar serves. Vectors of two models must not mix in one namespace."""

from __future__ import annotations

import asyncio
import logging

from redis import exceptions as redis_errors

from memory_core.errors import InvalidArgument, ModelMismatch, echo
from memory_core.records import keys
from memory_core.records.damage import is_wrong_type
from memory_core.records.keys import Keys
from memory_core.records.names import check_name, only_names
from memory_core.redis_client import Client
from memory_core.store.index import check_model
from memory_embedder.engines.encoder import Encoder
from memory_embedder.streams.retry import may_pass

_log = logging.getLogger(__name__)


class KnownNamespaces:
    """Tracks the known namespaces, those that have jobs, and those refused because of their model."""

    def __init__(self, client: Client, encoder: Encoder) -> None:
        self._client = client
        self._encoder = encoder
        self._served: dict[str, Keys] = {}
        self._refused: dict[str, ModelMismatch] = {}
        self._busy: dict[str, Keys] = {}
        self._pending: dict[str, Keys] = {}
        self.changed = asyncio.Event()
        self.queue_depth = 0

    @property
    def served(self) -> list[Keys]:
        """Namespaces that use this sidecar's model."""
        return list(self._served.values())

    @property
    def pending(self) -> list[Keys]:
        """Namespaces that had jobs, delivered or not, at the last scan or wake-up."""
        return list(self._pending.values())

    @property
    def refusals(self) -> str:
        """Why namespaces are left to other sidecars. Empty if none is."""
        return "; ".join(error.message for error in self._refused.values())

    @property
    def refused(self) -> int:
        """How many namespaces are left to other sidecars."""
        return len(self._refused)

    async def check_all(self, *, standby: bool = False) -> None:
        """Check every known namespace.

        Raises:
            ModelMismatch: all are indexed for other models and `standby` is off.
        """
        for name in only_names(await self._client.smembers(keys.NAMESPACES)):
            await self._admit(name, quietly=not standby)
        if self._refused and not self._served and not standby:
            raise next(iter(self._refused.values()))

    async def scan(self) -> None:
        """Find namespaces and jobs that no wake-up named."""
        for name in only_names(await self._client.smembers(keys.NAMESPACES)):
            await self._admit(name)
        served = self.served
        async with self._client.pipeline(transaction=False) as pipe:
            for names in served:
                pipe.xlen(names.jobs(self._encoder.name))
            lengths = [_length(answer) for answer in await pipe.execute(raise_on_error=False)]
        self.queue_depth = sum(lengths)
        self._pending.clear()
        for names, length in zip(served, lengths, strict=True):
            if length:
                self._mark(names)

    async def wake(self, name: str) -> None:
        """Note that a namespace has jobs."""
        try:
            check_name(name, "namespace")
        except InvalidArgument:
            _log.warning("a wake-up named %s, which is not a namespace", echo(name))
            return
        if names := await self._admit(name):
            self._mark(names)

    def take(self) -> Keys | None:
        """The next namespace to read, in turn. None if no namespace has jobs."""
        if not self._busy:
            self.changed.clear()
            return None
        return self._busy.pop(next(iter(self._busy)))

    def put_back(self, names: Keys) -> None:
        """Note that a namespace has more jobs."""
        self._mark(names)

    def _mark(self, names: Keys) -> None:
        self._busy.setdefault(names.namespace, names)
        self._pending[names.namespace] = names
        self.changed.set()

    async def _admit(self, name: str, *, quietly: bool = False) -> Keys | None:
        if name in self._served:
            return self._served[name]
        names = Keys(name)
        try:
            await check_model(self._client, names, self._encoder.name, self._encoder.dimension)
        except ModelMismatch as error:
            if name not in self._refused and not quietly:
                _log.warning("%s; leaving it to another sidecar", error.message)
            self._refused[name] = error
            return None
        except redis_errors.ResponseError as error:
            if not is_wrong_type(error):
                raise
            _log.warning("namespace %s is left out: %s is of another type", name, names.meta)
            return None
        self._refused.pop(name, None)
        self._served[name] = names
        return names


def _length(answer: int | Exception) -> int:
    """A stream that cannot be read now counts as empty, so that the other namespaces do not wait for it."""
    if isinstance(answer, Exception):
        if not may_pass(answer):
            raise answer
        return 0
    return answer
