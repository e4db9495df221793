"""The services that searches need."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from memory_core.settings.settings import Settings
from memory_server.engine.counters import Counters
from memory_server.engine.inflight_reads import InflightReads
from memory_server.engine.known_models import KnownModels
from memory_server.engine.latency import Latency
from memory_server.engine.namespaces import Namespaces
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.bulk_client import BulkClient
from memory_server.engine.sidecars.embeddings import Embeddings
from memory_server.security.vault import Vault


class SearchServices(Protocol):
    """Redis, models, vectors and figures for searches."""

    settings: Settings
    backend: Backend
    namespaces: Namespaces
    models: KnownModels
    embeddings: Embeddings
    bulk: BulkClient
    vault: Vault
    inflight_reads: InflightReads
    counters: Counters
    search_latency: Latency
    embedding_latency: Latency

    def touch(self, caller: Caller, memory_ids: Iterable[str]) -> None:
        """Count a read of each memory soon."""
