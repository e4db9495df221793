"""The modules that tools call, imported at first use so that `initialize` is answered fast (see `runtime`).

Type checkers read the imports; at run time `_PATHS` lists the same modules.
"""
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from memory_server.access import operator_login
    from memory_server.agents import registry
    from memory_server.events import live_feed, waiting
    from memory_server.memories import chunks, clear, get, record_encoder, store, update
    from memory_server.operations import admin_view, audit_reader
    from memory_server.operations.stats import memory_stats, overview_stats, prometheus, redis_stats
    from memory_server.search import projection, query_parser, search
    from memory_server.sharing import grants, offers, shared_context
    from memory_server.tasks import leases, lifecycle, submit

_PATHS = """
    access.operator_login agents.registry events.live_feed events.waiting memories.chunks
    memories.clear memories.get memories.record_encoder memories.store memories.update operations.admin_view
    operations.audit_reader operations.stats.memory_stats operations.stats.overview_stats operations.stats.prometheus
    operations.stats.redis_stats search.projection search.query_parser search.search sharing.grants
    sharing.offers sharing.shared_context tasks.leases tasks.lifecycle tasks.submit
"""
_MODULES = {path.rpartition(".")[2]: f"memory_server.{path}" for path in _PATHS.split()}


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(name)
    return import_module(_MODULES[name])
