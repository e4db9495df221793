"""What every use case that reads shares: loading one record, querying the index, telling what is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from redis import exceptions as redis_errors

from memory_core.errors import NotFound, StoreUnavailable, echo
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.store.connection import Client
from memory_core.store.index import is_missing_index
from memory_server.engine.validation import check_id
from memory_server.index import integrity_report, loader, queries
from memory_server.index.loader import Ref
from memory_server.service import Service

T = TypeVar("T")


async def load_readable(
    service: Service,
    principal: Principal,
    memory_id: str,
    *,
    model: Model | None = None,
    whole: bool = False,
) -> Record:
    """Load and open one record that the principal may read; see `loading.load`.

    Raises:
        NotFound: there is none, it has expired, or it is not the principal's to read: all alike.
        KeyMissing, Tampered: see `Vault.open`. Tampered too where it is not as a server of ours wrote it.
    """
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> list[Record]:
        refs = [Ref(check_id(memory_id))]
        return await loader.load_readable(
            client, keys, refs, principal, service.backend.integrity, model=model, whole=whole
        )

    with integrity_report.noting() as noted:
        records = await service.backend.read(fetch)
    if memory_id in noted:
        raise integrity_report.tampered(memory_id, noted[memory_id])
    if not records:
        raise NotFound(
            f"no memory {echo(memory_id)} that you may read", hint="search for it, or ask its owner to share it"
        )
    return await service.vault.open(principal.namespace, records[0])


async def run_search(service: Service, namespace: str, command: Callable[[Client], Awaitable[T]]) -> T:
    """Run commands on the index; where it is missing make it and run them once more.

    Raises:
        StoreUnavailable: Redis does not answer, or the search was stopped at its deadline.
    """
    for attempt in range(2):
        try:
            return await service.backend.read(command)
        except redis_errors.ResponseError as error:
            if not is_missing_index(error):
                raise queries.search_error(error) from error
            await service.backend.namespace(namespace, renew=True)
            if attempt:
                raise StoreUnavailable("another index took the place of this one", retry_after=0.1) from error
    raise AssertionError("unreachable")


def partial_reason(
    progress: float, warnings: Sequence[str] = (), *, failure: str | None = None, waiting: int = 0
) -> str | None:
    """Say what an answer lacks, or None when it is whole."""
    reasons = list(dict.fromkeys(warnings))
    if progress < 1:
        reasons.append(f"the index is being built ({progress:.0%}); some memories cannot be found yet")
    if failure:
        reasons.append(f"by words only: {failure}")
    elif waiting:
        reasons.append(f"{waiting} texts still wait for their vectors and were searched by words only")
    return "; ".join(reasons) or None
