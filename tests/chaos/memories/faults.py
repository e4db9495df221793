"""The faults of a run. Each strikes, lasts a while, is healed and is counted by its kind."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from chaos.history import Json
from chaos.progress import settle
from memory_core.records.keys import Keys

from . import clock, power
from .clock import RedisClock
from .load import MODEL, NAMESPACE
from .machine import Machine, Process
from .proxy import NetworkFault

_JUMP = 7200
_POISON: tuple[Json, ...] = (
    {"nonsense": "x"},
    {"v": 1, "id": "no-such-memory", "rev": 1, "hash": "0", "piece": 0, "model": MODEL, "body": "ghost"},
    {"v": 99, "id": b"\xff\xfe", "rev": "many", "hash": "", "piece": -1, "model": "", "seal": "", "body": b"\x00\xff"},
    {"v": 1, "id": "x", "rev": 1, "hash": "0", "piece": 10**9, "model": "none such", "seal": "", "body": "a" * 300_000},
)


@dataclass(slots=True)
class Faults:
    """Applies random faults of all kinds to a machine."""

    machine: Machine
    chance: random.Random
    clock: RedisClock
    duration_factor: float = 1.0
    """Multiplies the duration of faults."""
    struck: Counter[str] = field(default_factory=Counter[str])
    skipped: dict[str, str] = field(default_factory=dict[str, str])
    unsynced: int = 0
    """Bytes removed by power losses."""

    def kinds(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The faults that this machine allows, by name. Records the others in `skipped`, with the reason."""
        machine = self.machine
        found: dict[str, Callable[[], Awaitable[None]]] = {
            "Redis killed": self._redis_killed,
            "Redis paused": self._redis_paused,
            "sidecar killed": lambda: self._killed(machine.sidecar),
            "sidecar paused": lambda: self._paused(machine.sidecar, 1.0, 4.0),
            "server killed": lambda: self._killed(machine.server),
            "server paused": lambda: self._paused(machine.server, 0.3, 6.0),
            "all killed": self._all_killed,
            "replies lost": lambda: self._network_fault(NetworkFault.LOST_REPLIES),
            "delays": lambda: self._network_fault(NetworkFault.DELAYS),
            "half-open connections": lambda: self._network_fault(NetworkFault.HALF_OPEN),
            "refused connections": lambda: self._network_fault(NetworkFault.REFUSED),
            "connections cut": self._cut,
            "torn append-only file": self._torn,
            "memory full": self._memory_full,
            "functions flushed": self._functions_flushed,
            "index dropped": self._index_dropped,
            "poison jobs": self._poison,
            "append-only file rewritten": self._rewritten,
        }
        able = {
            "power lost": (machine.can_lose_power, self._power_lost, "no C compiler (cc)"),
            "disk full": (machine.disk.can_fill, self._disk_full, "mounting a tmpfs needs root"),
            "Redis's clock jumps": (machine.clocks_can_jump, self._redis_clock, "libfaketime is not installed"),
            "server's clock jumps": (machine.clocks_can_jump, self._server_clock, "libfaketime is not installed"),
        }
        found |= {name: strike for name, (can, strike, _) in able.items() if can}
        self.skipped |= {name: why for name, (can, _, why) in able.items() if not can}
        return found

    async def strike(self, name: str) -> None:
        """Apply one fault and heal it."""
        await self.kinds()[name]()
        self.struck[name] += 1

    async def _redis_killed(self) -> None:
        self.machine.redis.kill()
        await self._wait(0.0, 0.6)
        await self._start_redis()

    async def _redis_paused(self) -> None:
        self.machine.redis.signal(signal.SIGSTOP)
        await self._wait(0.3, 6.5)
        self.machine.redis.signal(signal.SIGCONT)

    async def _killed(self, process: Process) -> None:
        process.kill()
        await self._wait(0.0, 1.0)
        process.start()

    async def _paused(self, process: Process, least: float, most: float) -> None:
        process.signal(signal.SIGSTOP)
        await self._wait(least, most)
        process.signal(signal.SIGCONT)

    async def _all_killed(self) -> None:
        machine = self.machine
        for part in (machine.server, machine.redis, machine.sidecar):
            part.kill()
        await self._start_redis()
        machine.sidecar.start()
        machine.server.start()

    async def _network_fault(self, fault: NetworkFault) -> None:
        proxy = self.machine.proxies[self.chance.choice(["server", "server", "sidecar"])]
        proxy.begin(fault, self.chance.uniform(0.02, 0.3) if fault is NetworkFault.DELAYS else 0.0)
        await self._wait(0.3, 4.0)
        proxy.end()

    async def _cut(self) -> None:
        for proxy in self.machine.proxies.values():
            proxy.cut()

    async def _power_lost(self) -> None:
        """Cut the power of Redis's machine, sometimes while its file is being rewritten."""
        machine = self.machine
        if self.chance.random() < 0.3:
            await self._command("BGREWRITEAOF")
            await self._wait(0.0, 0.3)
        machine.redis.kill()
        self.unsynced += power.cut(machine.data, machine.sync_log, self.chance).lost
        await self._start_redis()

    async def _torn(self) -> None:
        self.machine.redis.kill()
        power.tear(self.machine.data, self.chance)
        await self._start_redis()

    async def _disk_full(self) -> None:
        """Fill the disk for a while or until Redis, which syncs every write, exits; then free it."""
        machine = self.machine
        await asyncio.to_thread(machine.disk.fill)
        await self._wait(0.5, 2.5)
        await asyncio.to_thread(machine.disk.free)
        if not machine.redis.is_alive:
            await self._start_redis()

    async def _memory_full(self) -> None:
        await self._command("CONFIG", "SET", "maxmemory", "1mb")
        await self._wait(0.3, 2.5)
        await self._command("CONFIG", "SET", "maxmemory", "0")

    async def _redis_clock(self) -> None:
        offset = self.chance.choice([-_JUMP, _JUMP])
        self._jump(offset)
        await self._wait(clock.SETTLING, clock.SETTLING + 4)
        self._jump(0)
        await asyncio.sleep(clock.SETTLING)

    def _jump(self, offset: int) -> None:
        clock.set_offset(self.machine.clock_files["redis"], offset)
        self.clock.jump(asyncio.get_running_loop().time(), offset)

    async def _server_clock(self) -> None:
        file = self.machine.clock_files["server"]
        clock.set_offset(file, self.chance.choice([-_JUMP, _JUMP]))
        await self._wait(clock.SETTLING, clock.SETTLING + 4)
        clock.set_offset(file, 0)

    async def _functions_flushed(self) -> None:
        await self._command("FUNCTION", "FLUSH")

    async def _index_dropped(self) -> None:
        await self._command("FT.DROPINDEX", Keys(NAMESPACE).index())

    async def _poison(self) -> None:
        with suppress(RedisError, OSError):
            for fields in self.chance.sample(_POISON, k=2):
                await self.machine.client.xadd(Keys(NAMESPACE).jobs(MODEL), fields)

    async def _rewritten(self) -> None:
        await self._command("BGREWRITEAOF")

    async def _command(self, *command: str) -> None:
        """Send a command to Redis, with retries, because an earlier fault may still block it."""

        async def refused() -> list[str]:
            try:
                await self.machine.client.execute_command(*command)
            except (RedisError, OSError) as error:
                is_needless = any(text in str(error).lower() for text in ("no such index", "already in progress"))
                return [] if is_needless else [f"{command[0]}: {error}"]
            return []

        left = await settle(refused)
        assert not left, left

    async def _start_redis(self) -> None:
        await asyncio.to_thread(self.machine.redis.start)

    async def _wait(self, least: float, most: float) -> None:
        await asyncio.sleep(self.duration_factor * self.chance.uniform(least, most))
