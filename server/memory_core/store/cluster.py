"""A Redis Cluster client with the interface of a single Redis: each command goes to the shard of its key.

redis-py's RedisCluster does not suffice: docs/decisions/0027-scale-out.md says why.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.client import Pipeline
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from memory_core.errors import UnsafeStart
from memory_core.store.urls import Address, RedisUrl

Command = tuple[tuple[Any, ...], dict[str, Any]]
_MOST_REDIRECTIONS = 4
_LEARN_SECONDS = 1.0
_KEYLESS = frozenset(
    "ACL ASKING CLIENT CLUSTER CONFIG FT.CONFIG FT._LIST FUNCTION INFO LATENCY MODULE PING ROLE SLOWLOG TIME".split()
)
_WHOLE_SLOT = ("FCALL", "FT.")
"""Prefixes of commands that touch more keys than they name, and so never run on half of a moving slot."""
_NOWHERE: Address = ("", 0)


def key_of(args: Sequence[Any]) -> Any | None:
    """Return the key that decides where a command goes; None for any. Raises ValueError for a SCAN of all keys."""
    words = str(args[0]).upper().split()
    name, rest = words[0], [*words[1:], *args[1:]]
    if name in _KEYLESS:
        return None
    if name == "FCALL":
        return rest[2] if int(rest[1]) else None
    if name in ("XREAD", "XREADGROUP"):
        return rest[_texts(rest).index("STREAMS") + 1]
    if name == "SCAN":
        texts = _texts(rest)
        pattern = texts[texts.index("MATCH") + 1] if "MATCH" in texts else ""
        if "{" not in pattern:
            raise ValueError("SCAN on a cluster needs a pattern with a namespace")
        return pattern
    return rest[1] if name in ("MEMORY", "OBJECT", "XGROUP", "XINFO") else rest[0]


def _texts(words: Sequence[Any]) -> list[str]:
    return [word.decode(errors="replace") if isinstance(word, bytes) else str(word) for word in words]


class ClusterClient(Redis):
    """Has one plain client per node and chooses it by the slot of the key.

    `make_pool` makes the connections to an address. `on_move` is called when slots get another master.
    """

    def __init__(self, url: RedisUrl, make_pool: Callable[[Address], BlockingConnectionPool]) -> None:
        self._seeds, self._make_pool = url.seeds, make_pool
        self._nodes: dict[Address, Redis] = {}
        self._masters = [_NOWHERE] * REDIS_CLUSTER_HASH_SLOTS
        self._known: set[Address] = set(url.seeds)
        self._suspect: Address | None = None
        self._is_stale = True
        self._learning = asyncio.Lock()
        self._answered: dict[tuple[int, tuple[Any, ...]], Any] = {}
        self.on_move: Callable[[], None] = lambda: None
        self._on_node: Callable[[Redis], None] = lambda _: None
        super().__init__(connection_pool=self._node(url.seeds[0]).connection_pool)

    async def shards(self) -> list[Redis]:
        await self._learn()
        return [self._node(address) for address in dict.fromkeys(self._masters)]

    def watch_nodes(self, watch: Callable[[Redis], None]) -> None:
        """Call `watch` with the client of each node, now or when it is made."""
        self._on_node = watch
        for node in self._nodes.values():
            watch(node)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command on the shard of its key, never twice. `INFO` adds up the answers of all shards."""
        if args[0] == "INFO":
            return _merge_infos(await self._answers_of_all((args, options)))
        key = key_of(args)
        if key is None:
            return await self._answer_of_any((args, options))
        for _ in range(_MOST_REDIRECTIONS):
            address = await self._address_of(key)
            try:
                return await self._watched(address, self._node(address).execute_command(*args, **options))
            except redis_errors.MovedError as error:
                await self._follow(error, address)
            except redis_errors.AskError as error:
                return await self._ask(error, address, (args, options))
        raise redis_errors.ClusterDownError("the nodes disagree where the slot is")

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Make a pipeline whose commands go to their shards; a transaction stays within one slot."""
        return _ClusterPipeline(self, transaction)

    async def run(self, commands: Sequence[Command], *, transaction: bool) -> list[Any]:
        """Run the commands of each shard in their order. Errors of single commands are among the answers."""
        groups: dict[Address, list[int]] = {}
        for number, key in enumerate(_keys_of(commands)):
            groups.setdefault(await self._address_of(key), []).append(number)
        answers: list[Any] = [None] * len(commands)

        async def run_group(address: Address, numbers: list[int]) -> None:
            group = [commands[number] for number in numbers]
            try:
                found = await self._run_on(address, group, transaction)
            except redis_errors.MovedError as error:
                # Raised by a transaction, of which nothing was done.
                found = await self._run_on(await self._follow(error, address), group, transaction)
            for number, answer in zip(numbers, found, strict=True):
                is_elsewhere = isinstance(answer, redis_errors.AskError) and not transaction
                answers[number] = await self._run_alone(commands[number]) if is_elsewhere else answer

        await asyncio.gather(*(run_group(address, numbers) for address, numbers in groups.items()))
        return answers

    async def shard_of(self, key: str) -> Redis:
        return self._node(await self._address_of(key))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        for node in self._nodes.values():
            await node.aclose()

    async def _answers_of_all(self, command: Command) -> list[Any]:
        """Ask all shards. A shard that does not answer is represented by its last answer, unless none answers."""
        shards = await self.shards()
        found = await asyncio.gather(*(self._within(shard, command) for shard in shards), return_exceptions=True)
        if all(isinstance(answer, BaseException) for answer in found):
            raise found[0]
        for shard, answer in zip(shards, found, strict=True):
            if not isinstance(answer, BaseException):
                self._answered[id(shard), command[0]] = answer
        last = [self._answered.get((id(shard), command[0])) for shard in shards]
        return [answer for answer in last if answer is not None]

    async def _answer_of_any(self, command: Command) -> Any:
        *others, last = await self.shards()
        for shard in others:
            try:
                return await self._within(shard, command)
            except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
                self._is_stale = True
        return await self._within(last, command)

    async def _within(self, shard: Redis, command: Command) -> Any:
        async with asyncio.timeout(_LEARN_SECONDS):
            return await shard.execute_command(*command[0], **command[1])

    async def _run_on(self, address: Address, commands: Sequence[Command], transaction: bool) -> list[Any]:
        pipe = self._node(address).pipeline(transaction=transaction)
        for args, options in commands:
            pipe.execute_command(*args, **options)
        try:
            return await self._watched(address, pipe.execute(raise_on_error=False))
        except redis_errors.MovedError:
            raise
        except (redis_errors.RedisError, OSError) as error:
            return [error] * len(commands)

    async def _run_alone(self, command: Command) -> Any:
        try:
            return await self.execute_command(*command[0], **command[1])
        except (redis_errors.RedisError, OSError) as error:
            return error

    async def _watched(self, address: Address, action: Awaitable[Any]) -> Any:
        """Look up the slots again later if a node does not answer within the deadline."""
        try:
            return await action
        except redis_errors.ResponseError:
            raise
        except BaseException:
            self._is_stale, self._suspect = True, address
            raise

    async def _follow(self, error: redis_errors.MovedError, asked: Address) -> Address:
        address = (error.host or asked[0], error.port)
        self._is_stale = True
        await self._learn(first=address)
        # Some nodes learn late that a slot has moved.
        self._settle({error.slot_id: address})
        return address

    async def _ask(self, error: redis_errors.AskError, asked: Address, command: Command) -> Any:
        args, options = command
        if str(args[0]).upper().startswith(_WHOLE_SLOT):
            raise error
        address = (error.host or asked[0], error.port)
        pipe = self._node(address).pipeline(transaction=False)
        pipe.execute_command("ASKING")
        pipe.execute_command(*args, **options)
        return (await self._watched(address, pipe.execute()))[1]

    async def _address_of(self, key: Any | None) -> Address:
        await self._learn()
        return self._masters[key_slot(key if isinstance(key, bytes) else str(key).encode()) if key else 0]

    def _node(self, address: Address) -> Redis:
        if address not in self._nodes:
            self._nodes[address] = Redis.from_pool(self._make_pool(address))
            self._on_node(self._nodes[address])
        return self._nodes[address]

    async def _learn(self, first: Address | None = None) -> None:
        """Ask a node which master has which slots, if that may have changed. Asks a suspect node last."""
        if not self._is_stale:
            return
        async with self._learning:
            if not self._is_stale:
                return
            known = self._known | ({first} if first else set())
            known_nodes = random.sample(sorted(known), len(known))  # nosec B311
            for address in sorted(known_nodes, key=lambda one: (one != first, one == self._suspect)):
                found = await self._slots_by(address)
                if found is not None:
                    await self._take_in(address, found)
                    return
        raise redis_errors.ConnectionError("connecting to the cluster: no node of it answers")

    async def _slots_by(self, address: Address) -> list[Any] | None:
        try:
            async with asyncio.timeout(_LEARN_SECONDS):
                return await self._node(address).execute_command("CLUSTER", "SLOTS")
        except redis_errors.AuthenticationError:
            raise
        except redis_errors.NoPermissionError as error:
            raise UnsafeStart("this Redis user may not call CLUSTER SLOTS", hint="see redis/users.acl") from error
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
            return None
        except redis_errors.ResponseError as error:
            if "cluster support disabled" in str(error):
                raise UnsafeStart("this Redis is no cluster", hint="use a redis:// or rediss:// URL") from error
            return None

    async def _take_in(self, asked: Address, found: list[Any]) -> None:
        masters: dict[int, Address] = {}
        known: set[Address] = set(self._seeds)
        for first, last, *nodes in found:
            addresses = [(str(host or b"", "ascii") or asked[0], int(port)) for host, port, *_ in nodes]
            known.update(addresses)
            masters |= dict.fromkeys(range(first, last + 1), addresses[0])
        if len(masters) < REDIS_CLUSTER_HASH_SLOTS:
            raise redis_errors.ClusterDownError("slots without a master")
        self._known, self._is_stale, self._suspect = known, False, None
        gone = [self._nodes.pop(address) for address in set(self._nodes) - known]
        self._settle(masters)
        for node in gone:
            await node.connection_pool.disconnect(inuse_connections=False)

    def _settle(self, masters: dict[int, Address]) -> None:
        """Record the masters of slots; call `on_move` if a known one changed."""
        before = self._masters
        self._masters = [masters.get(slot, address) for slot, address in enumerate(before)]
        if self._masters != before and _NOWHERE not in before:
            self.on_move()


class _ClusterPipeline(Pipeline):
    def __init__(self, cluster: ClusterClient, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, {}, transaction, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands: Any = list(self.command_stack)
        await self.reset()
        if not commands:
            return []
        answers = await self._cluster.run(commands, transaction=self.is_transaction)
        if raise_on_error:
            for answer in answers:
                if isinstance(answer, redis_errors.RedisError | OSError):
                    raise answer
        return answers


def _keys_of(commands: Sequence[Command]) -> list[Any | None]:
    """Return the key of each command. One without a key follows the previous command, or else the first with a key."""
    keys = [key_of(args) for args, _ in commands]
    last = next((key for key in keys if key is not None), None)
    for number, key in enumerate(keys):
        last = keys[number] = last if key is None else key
    return keys


_SUMMED = ("used_memory", "maxmemory", "connected_clients", "acl_access_denied_", "total_", "keyspace_", "evicted_")


def _merge_infos(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Merge the INFO of all shards: oldest version, sums of counters, joined run ids, else the first shard's value."""
    first, *others = infos
    whole = dict(first)
    for other in others:
        for name, value in other.items():
            if name.startswith(_SUMMED) and isinstance(value, int | float) and name in whole:
                whole[name] += value
    versions = [str(info.get("redis_version", "0")) for info in infos]
    whole["redis_version"] = min(versions, key=lambda version: [int(part) for part in version.split(".")[:2]])
    whole["uptime_in_seconds"] = min(int(info.get("uptime_in_seconds", 0)) for info in infos)
    whole["aof_enabled"] = min(int(info.get("aof_enabled", 0)) for info in infos)
    whole["run_id"] = "+".join(str(info.get("run_id", "")) for info in infos)
    whole.pop("cluster_enabled", None)
    return whole
