"""Modules that a command imports on first use, so that `redis-memory --help` and stdio servers start fast.

Type checkers read the imports; at run time `_MODULES` has the same modules by name.
"""
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvloop

    from memory_core.crypto import signed_entry as audit_entries
    from memory_core.observe import logs
    from memory_core.settings import settings
    from memory_core.store import connection
    from memory_server import service
    from memory_server.access import operator_login, tokens
    from memory_server.agents import registry as agents
    from memory_server.cli import printing as printing
    from memory_server.cli import settings_reference
    from memory_server.cli.client_config import writer as client_files
    from memory_server.contract import arguments, task_arguments
    from memory_server.engine import audited_calls as audit_calls
    from memory_server.engine import redis_backend, request_context
    from memory_server.http import app as http
    from memory_server.local import paths, project, running
    from memory_server.local import stop as stop
    from memory_server.mcp import stdio, tools_reference
    from memory_server.memories import get as read
    from memory_server.operations import (
        admin_view,
        bench,
        doctor,
        kept_memories,
        key_rotation,
        quarantine,
        reindex,
        status,
    )
    from memory_server.operations import verify_integrity as integrity
    from memory_server.operations.health import machine
    from memory_server.search import reports, search
    from memory_server.security.audit import export as audit_export
    from memory_server.security.audit import reader as audit_reader
    from memory_server.sharing import grants
    from memory_server.tasks import lifecycle as tasks
    from memory_server.transfer import exporter, importer, incoming_memory

_NAMES = """
    uvloop memory_core.store.connection memory_core.observe.logs memory_core.settings.settings
    memory_server.engine.redis_backend memory_server.operations.bench memory_server.cli.printing
    memory_server.operations.health.machine memory_server.operations.doctor memory_server.local.stop
    memory_server.transfer.incoming_memory memory_server.transfer.exporter memory_server.transfer.importer
    memory_server.local.running memory_server.local.paths memory_server.local.project
    memory_server.service memory_server.cli.settings_reference
    memory_server.operations.status memory_server.mcp.tools_reference memory_server.mcp.stdio
    memory_server.access.operator_login memory_server.operations.admin_view memory_server.engine.request_context
    memory_server.operations.quarantine memory_server.operations.reindex memory_server.search.reports
    memory_server.operations.key_rotation memory_server.search.search memory_server.contract.arguments
    memory_server.contract.task_arguments memory_server.sharing.grants memory_server.access.tokens
    memory_server.operations.kept_memories
"""
_MODULES = {path.rpartition(".")[2]: path for path in _NAMES.split()} | {
    "audit_calls": "memory_server.engine.audited_calls",
    "audit_entries": "memory_core.crypto.signed_entry",
    "audit_export": "memory_server.security.audit.export",
    "audit_reader": "memory_server.security.audit.reader",
    "client_files": "memory_server.cli.client_config.writer",
    "http": "memory_server.http.app",
    "agents": "memory_server.agents.registry",
    "integrity": "memory_server.operations.verify_integrity",
    "read": "memory_server.memories.get",
    "tasks": "memory_server.tasks.lifecycle",
}


def __getattr__(name: str) -> ModuleType:
    if name not in _MODULES:
        raise AttributeError(name)
    return import_module(_MODULES[name])
