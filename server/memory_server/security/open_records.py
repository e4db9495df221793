"""Loads and decrypts single records that a principal may read."""

from __future__ import annotations

from typing import Protocol

from memory_core.errors import NotFound, echo
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.redis_client import Client
from memory_server.contract.validation import check_id
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.security.vault import Vault


class VaultServices(Protocol):
    """The services that reading a record needs."""

    @property
    def backend(self) -> Backend: ...
    @property
    def vault(self) -> Vault: ...


def no_memory(memory_id: str) -> NotFound:
    """Return the error for unknown memories and for those that the caller may not read."""
    hint = "search for it, or ask its owner to share it"
    return NotFound(f"no memory {echo(check_id(memory_id))} that you may read", hint=hint)


async def load_readable(
    service: VaultServices,
    request: RequestContext,
    principal: Principal,
    memory_id: str,
    *,
    model: Model | None = None,
    whole: bool = False,
) -> Record:
    """Load and decrypt one record that the principal may read; see `loader.load`.

    Raises:
        NotFound: it does not exist, has expired, or the principal may not read it; the three look identical.
        KeyMissing, Tampered: see `Vault.open`; Tampered also if the integrity check fails.
    """
    keys, own = Keys(principal.namespace), request.with_own_report()

    async def fetch(client: Client) -> list[Record]:
        refs = [Ref(check_id(memory_id))]
        return await loader.load_readable(
            client, keys, refs, own, principal, service.backend.integrity, model=model, whole=whole
        )

    records = await service.backend.read(fetch)
    own.integrity.check(memory_id)
    if not records:
        raise no_memory(memory_id)
    return await service.vault.open(principal.namespace, records[0])
