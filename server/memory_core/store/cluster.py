"""A client of Redis Cluster that the rest takes for one of a single Redis: each command goes to the shard of its key.

redis-py's own would try commands again whose answer was lost, and knows nothing of where an index lies.
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
from memory_core.store.urls import Address, Place

Command = tuple[tuple[Any, ...], dict[str, Any]]
_MOST_REDIRECTIONS = 4
_LEARN_SECONDS = 1.0
_KEYLESS = frozenset(
    "ACL ASKING CLIENT CLUSTER CONFIG FT.CONFIG FT._LIST FUNCTION INFO LATENCY MODULE PING ROLE SLOWLOG TIME".split()
)
_NOT_ELSEWHERE = ("FCALL", "FT.")
"""Beginnings of commands that see more than the keys they name: half of a slot on its way is not enough for them."""


def key_of(args: Sequence[Any]) -> Any | None:
    """Give the key that decides where a command goes; None for those that any shard may answer.

    Raises:
        ValueError: it walks keys without saying of which namespace.
    """
    words = str(args[0]).upper().split()
    name, rest = words[0], [*words[1:], *args[1:]]
    if name in _KEYLESS:
        return None
    if name == "FCALL":
        return rest[2] if int(rest[1]) else None
    if name in ("XREAD", "XREADGROUP"):
        said = [str(word, "utf-8", "replace") if isinstance(word, bytes) else word for word in rest]
        return rest[said.index("STREAMS") + 1]
    if name == "SCAN":
        pattern = next((rest[at + 1] for at, word in enumerate(rest) if word in (b"MATCH", "MATCH")), "")
        if "{" not in (pattern.decode() if isinstance(pattern, bytes) else str(pattern)):
            raise ValueError("a walk over keys of a cluster needs a pattern with a namespace")
        return pattern
    return rest[1] if name in ("MEMORY", "OBJECT", "XGROUP", "XINFO") else rest[0]


class Cluster(Redis):
    """One ordinary client for each node, chosen by the slot of the key, which asks anew where slots are when told so.

    `make_pool` makes the connections to an address. `on_move` is called when slots have another master.
    """

    def __init__(self, place: Place, make_pool: Callable[[Address], BlockingConnectionPool]) -> None:
        self._seeds, self._make_pool = place.seeds, make_pool
        self._nodes: dict[Address, Redis] = {}
        self._masters: list[Address] = []
        self._known: set[Address] = set(place.seeds)
        self._suspect: Address | None = None
        self._is_stale = True
        self._learning = asyncio.Lock()
        self._answered: dict[tuple[int, tuple[Any, ...]], Any] = {}
        self.on_move: Callable[[], None] = lambda: None
        self._on_node: Callable[[Redis], None] = lambda _: None
        super().__init__(connection_pool=self._node(place.seeds[0]).connection_pool)

    async def shards(self) -> list[Redis]:
        """Give a client of each master."""
        await self._learn()
        return [self._node(address) for address in dict.fromkeys(self._masters)]

    def watch_nodes(self, watch: Callable[[Redis], None]) -> None:
        """Show `watch` the client of each node, now or when it is made."""
        self._on_node = watch
        for node in self._nodes.values():
            watch(node)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Have the shard of its key answer a command; `INFO` is summed up over all shards.

        A command that was sent and not answered is never sent again.
        """
        if args[0] == "INFO":
            return _sum_up(await self._answers_of_all((args, options)))
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
        """Make a pipeline whose commands go to their shards; a transaction is of one slot."""
        return _ClusterPipeline(self, transaction)

    async def run(self, commands: Sequence[Command], *, transaction: bool) -> list[Any]:
        """Run commands, those of each shard in their order; errors of single commands are among the answers."""
        groups: dict[Address, list[int]] = {}
        for number, key in enumerate(_keys_of(commands)):
            groups.setdefault(await self._address_of(key), []).append(number)
        answers: list[Any] = [None] * len(commands)

        async def run_group(address: Address, numbers: list[int], again: bool = True) -> None:
            pipe = self._node(address).pipeline(transaction=transaction)
            for number in numbers:
                pipe.execute_command(*commands[number][0], **commands[number][1])
            try:
                found = await self._watched(address, pipe.execute(raise_on_error=False))
            except redis_errors.MovedError as error:
                # That of a transaction, of which nothing was done.
                if not again:
                    raise
                await run_group(await self._follow(error, address), numbers, again=False)
                return
            except (redis_errors.RedisError, OSError) as error:
                found = [error] * len(numbers)
            for number, answer in zip(numbers, found, strict=True):
                is_elsewhere = isinstance(answer, redis_errors.AskError) and not transaction
                answers[number] = await self._again(commands[number]) if is_elsewhere else answer

        await asyncio.gather(*(run_group(address, numbers) for address, numbers in groups.items()))
        return answers

    async def shard_of(self, key: str) -> Redis:
        """Give a client of the master of a key."""
        return self._node(await self._address_of(key))

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close the connections to all nodes."""
        for node in self._nodes.values():
            await node.aclose()

    async def _answers_of_all(self, command: Command) -> list[Any]:
        """Ask all shards; for those that do not answer now stands what they answered last, unless none answers."""
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
        """Ask one shard after the other until one answers."""
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

    async def _again(self, command: Command) -> Any:
        try:
            return await self.execute_command(*command[0], **command[1])
        except (redis_errors.RedisError, OSError) as error:
            return error

    async def _watched(self, address: Address, action: Awaitable[Any]) -> Any:
        """Doubt where the slots are if a node does not answer, its deadline included."""
        try:
            return await action
        except redis_errors.ResponseError:
            raise
        except BaseException:
            self._is_stale, self._suspect = True, address
            raise

    async def _follow(self, error: redis_errors.MovedError, told_by: Address) -> Address:
        address = (error.host or told_by[0], error.port)
        self._is_stale = True
        await self._learn(first=address)
        # A node may hear late of what another tells.
        self._settle({error.slot_id: address})
        return address

    async def _ask(self, error: redis_errors.AskError, told_by: Address, command: Command) -> Any:
        """Run a command where its key goes while the slot is on its way.

        Raises:
            redis.exceptions.AskError: the command needs the slot as a whole.
        """
        args, options = command
        if str(args[0]).upper().startswith(_NOT_ELSEWHERE):
            raise error
        address = (error.host or told_by[0], error.port)
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
        """Ask where slots are, unless nothing gave reason to doubt what is known.

        Raises:
            redis.exceptions.ConnectionError: no node answers.
            UnsafeStart: what answers is no cluster.
        """
        if not self._is_stale:
            return
        async with self._learning:
            if not self._is_stale:
                return
            others = [address for address in self._known if address not in (first, self._suspect)]
            random.shuffle(others)
            last = [self._suspect] if self._suspect and self._suspect != first else []
            for address in [*([first] if first else []), *others, *last]:
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
            raise UnsafeStart("this user of Redis may not ask CLUSTER SLOTS", hint="see redis/users.acl") from error
        except (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError):
            return None
        except redis_errors.ResponseError as error:
            if "cluster support disabled" in str(error):
                raise UnsafeStart("this Redis is no cluster", hint="name it by redis:// or rediss://") from error
            return None

    async def _take_in(self, told_by: Address, found: list[Any]) -> None:
        nowhere: Address = ("", 0)
        masters = [nowhere] * REDIS_CLUSTER_HASH_SLOTS
        known: set[Address] = set(self._seeds)
        for first, last, *nodes in found:
            addresses = [(str(host or b"", "ascii") or told_by[0], int(port)) for host, port, *_ in nodes]
            known.update(addresses)
            masters[first : last + 1] = [addresses[0]] * (last + 1 - first)
        if nowhere in masters:
            raise redis_errors.ClusterDownError("slots without a master")
        self._known, self._is_stale, self._suspect = known, False, None
        gone = [self._nodes.pop(address) for address in set(self._nodes) - known]
        self._settle(dict(enumerate(masters)))
        for node in gone:
            await node.connection_pool.disconnect(inuse_connections=False)

    def _settle(self, found: dict[int, Address]) -> None:
        """Take masters of slots for known, and tell if some are others than before."""
        masters = self._masters or [("", 0)] * REDIS_CLUSTER_HASH_SLOTS
        if all(masters[slot] == address for slot, address in found.items()):
            return
        is_first = not self._masters
        self._masters = [found.get(slot, address) for slot, address in enumerate(masters)]
        if not is_first:
            self.on_move()


class _ClusterPipeline(Pipeline):
    """Gathers commands as redis-py's does, and hands them to the cluster."""

    def __init__(self, cluster: Cluster, transaction: bool) -> None:
        super().__init__(cluster.connection_pool, {}, transaction, None)
        self._cluster = cluster

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run what was gathered and give the answers in that order."""
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
    """Give the key of each command; one without goes where the one before it goes, or the first that has one."""
    keys = [key_of(args) for args, _ in commands]
    last = next((key for key in keys if key is not None), None)
    for number, key in enumerate(keys):
        last = keys[number] = last if key is None else key
    return keys


_ADDED_UP = ("used_memory", "maxmemory", "connected_clients", "acl_access_denied_", "total_", "keyspace_", "evicted_")


def _sum_up(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Make one INFO of those of all shards: the oldest version, sums of what adds up, the first one's for the rest.

    The run id is one of all of them together, in the order of their slots, and that each is a node is left out.
    """
    first, *others = infos
    whole = dict(first)
    for other in others:
        for name, value in other.items():
            if name.startswith(_ADDED_UP) and isinstance(value, int | float) and name in whole:
                whole[name] += value
    versions = [str(info.get("redis_version", "0")) for info in infos]
    whole["redis_version"] = min(versions, key=lambda version: [int(part) for part in version.split(".")[:2]])
    whole["uptime_in_seconds"] = min(int(info.get("uptime_in_seconds", 0)) for info in infos)
    whole["aof_enabled"] = min(int(info.get("aof_enabled", 0)) for info in infos)
    whole["run_id"] = "+".join(str(info.get("run_id", "")) for info in infos)
    whole.pop("cluster_enabled", None)
    return whole
