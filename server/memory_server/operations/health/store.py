"""Checks Redis: version, safety, persistence, memory, clock, ACL denials, timeouts and Functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from memory_core.errors import StoreRefused
from memory_core.package_data import resource
from memory_core.redis_client import Client
from memory_core.store import functions
from memory_core.store.connection import store_errors, unsafe
from memory_server.contract.untrusted_text import counted
from memory_server.engine.index_definition import text_of
from memory_server.operations.health.report import DoctorReport

CLOCKS_DIFFER_SECONDS = 1.0
"""Heartbeats and leases last a few seconds, and each process reads them by its own clock."""
_FULL_SHARE = 0.9
_OPTIONAL_COMMANDS = frozenset({"config|get", "acl|log"})
"""Commands that the product tries and works without; see docs/decisions/0011."""
_MOST_SHOWN = 3
_LISTPACK, _COMPACT_BYTES = "hash-max-listpack-value", 4096
"""Redis stores a hash whose fields are all this short as one block. As redis/redis.conf."""


async def check_redis(client: Client, report: DoctorReport, clock: Callable[[], float] = time.time) -> bool:
    """Check Redis; return whether a server can use it. Raises StoreUnavailable."""
    async with store_errors():
        info = await client.info()
        modules = await client.execute_command("MODULE", "LIST")
    report.redis |= {"version": str(info["redis_version"]), "used_memory": int(info["used_memory"])}
    usable = _check_safety(report, info, modules, client)
    _check_persistence(report, info)
    _check_memory(report, info)
    await _check_clock(client, report, clock)
    await _check_denials(client, report, info)
    if usable:
        await _check_encoding(client, report)
        await _check_timeouts(client, report)
        await _check_functions(client, report)
    return usable


def _check_safety(report: DoctorReport, info: dict[str, Any], modules: Any, client: Client) -> bool:
    problems = unsafe(info, modules, client.connection_pool.connection_kwargs.get("db", 0))
    good = {"version": f"Redis {info['redis_version']}", "modules": "the Query Engine is loaded"}
    good |= {"policy": "nothing is evicted", "database": "database 0"}
    for name, seen in good.items():
        if problem := problems.get(name):
            report.error(f"redis.{name}", problem.message, problem.hint)
        else:
            report.ok(f"redis.{name}", seen)
    return not problems


def _check_persistence(report: DoctorReport, info: dict[str, Any]) -> None:
    if not int(info.get("aof_enabled", 0)):
        seen = "the append-only file is off: memories are lost when Redis stops"
        report.error("redis.persistence", seen, "CONFIG SET appendonly yes, and set it in redis.conf")
    elif info.get("aof_last_write_status", "ok") != "ok" or info.get("aof_last_bgrewrite_status", "ok") != "ok":
        remedy = "read the log of Redis; free space on its disk, then BGREWRITEAOF"
        report.error("redis.persistence", "Redis failed to write the append-only file", remedy)
    else:
        report.ok("redis.persistence", "the append-only file is on")


def _check_memory(report: DoctorReport, info: dict[str, Any]) -> None:
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    seen = f"{used >> 20} MiB used" + (f" of {most >> 20} MiB" if most else ", no limit set")
    remedy = (
        "raise maxmemory by CONFIG SET and in redis.conf, or delete memories with clear_memory; at the limit Redis "
    )
    remedy += "refuses what adds to it, and still deletes"
    report.check(not most or used <= _FULL_SHARE * most, "redis.memory", seen, remedy)


async def _check_clock(client: Client, report: DoctorReport, clock: Callable[[], float]) -> None:
    async with store_errors():
        before = clock()
        seconds, microseconds = await client.time()
        difference = (before + clock()) / 2 - (int(seconds) + int(microseconds) / 1e6)
    if abs(difference) > CLOCKS_DIFFER_SECONDS:
        seen = f"this machine's clock is {abs(difference):.1f} s {'ahead of' if difference > 0 else 'behind'} Redis's"
        report.error("clock", seen, "set both by NTP (timedatectl set-ntp true); leases and heartbeats depend on them")
    else:
        report.ok("clock", f"{abs(difference) * 1000:.0f} ms from the clock of Redis")


async def _check_denials(client: Client, report: DoctorReport, info: dict[str, Any]) -> None:
    """Check for ACL denials, by the ACL log if it may be read, else by its counters."""
    counters = {kind: int(info.get(f"acl_access_denied_{kind}", 0)) for kind in ("auth", "cmd", "key", "channel")}
    if not any(counters.values()):
        report.ok("redis.acl", "no denials")
        return
    denials = None if _is_shipped(client) else await _logged_denials(client)
    if denials is None:
        number = counters["key"] + counters["channel"]
        denials = [counted(number, "key or channel", "keys or channels")] if number else []
    if denials:
        more = f" and {len(denials) - _MOST_SHOWN} more" if len(denials) > _MOST_SHOWN else ""
        remedy = "compare the user's rules with this release's redis/users.acl, ACL LOAD, then ACL LOG RESET"
        report.error("redis.acl", f"Redis denied {', '.join(denials[:_MOST_SHOWN])}{more}", remedy)
    else:
        report.ok("redis.acl", "no denials, except of optional commands")


def _is_shipped(client: Client) -> bool:
    """Whether the user is from redis/users.acl. Those may not read the log, and trying adds an entry to it."""
    name = client.connection_pool.connection_kwargs.get("username")
    return bool(name) and f"user {name} " in resource("redis/users.acl").read_text()


async def _logged_denials(client: Client) -> list[str] | None:
    """Return the denials of the ACL log; None if it may not be read."""
    try:
        async with store_errors():
            entries = await client.acl_log()
    except (ResponseError, StoreRefused):
        return None
    found = [{text_of(name): text_of(value) for name, value in entry.items()} for entry in entries]
    denied = (one for one in found if one["object"] not in _OPTIONAL_COMMANDS)
    return list(dict.fromkeys(f"{one['username']} the {one['reason']} {one['object']}" for one in denied))


async def _check_encoding(client: Client, report: DoctorReport) -> None:
    """Tell what the compact form of hashes would save on a Redis without the settings of redis/redis.conf."""
    try:
        async with store_errors():
            longest = int((await client.config_get(_LISTPACK))[_LISTPACK])
    except (ResponseError, StoreRefused, KeyError):
        return
    if longest >= _COMPACT_BYTES:
        report.ok("redis.encoding", "hashes are stored compactly")
    else:
        seen = f"{_LISTPACK} {_COMPACT_BYTES} in redis.conf, and a restart of Redis, would save over 1 kB a memory"
        report.ok("redis.encoding", seen)


async def _check_timeouts(client: Client, report: DoctorReport) -> None:
    try:
        async with store_errors():
            answer = await client.execute_command("FT.CONFIG", "GET", "ON_TIMEOUT")
    except (ResponseError, StoreRefused):
        report.ok("redis.search", "the behaviour of a search that times out is unknown: FT.CONFIG is not allowed")
        return
    if "fail" in repr(answer).lower():
        report.ok("redis.search", "a search that times out fails")
    else:
        remedy = "load the Query Engine with ON_TIMEOUT FAIL, or FT.CONFIG SET ON_TIMEOUT FAIL"
        report.warning("redis.search", "a search that times out returns a partial result", remedy)


async def _check_functions(client: Client, report: DoctorReport) -> None:
    try:
        async with store_errors():
            library = await functions.loaded_library(client)
    except (ResponseError, StoreRefused):
        return
    if library is None:
        report.ok("redis.functions", "not loaded yet; a server loads it")
    elif library.is_newer:
        remedy = "upgrade this installation: servers of this release refuse to start"
        report.warning("redis.functions", f"the library {functions.LIBRARY} is of release {library.release}", remedy)
    elif not library.is_own:
        seen = f"the library {functions.LIBRARY} is not the one of this release ({functions.RELEASE})"
        remedy = "a running server loads its own again within seconds; if no older release is in use, somebody else "
        remedy += "changed it: change the passwords of Redis"
        report.error("redis.functions", seen, remedy)
    else:
        report.ok("redis.functions", f"the library {functions.LIBRARY} is from this release")
