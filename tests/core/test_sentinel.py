"""Behind Sentinels the server follows the current master."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from support.cluster import Node, node_port
from support.embedder_fixtures import wait_until
from support.redis_users import PASSWORDS, SERVER
from support.stack import Agent, Refused, serving

from memory_core.errors import UnsafeStart
from memory_core.redis_client import Client
from memory_core.store.connection import check_server, connect

pytestmark = pytest.mark.cluster
SERVICE = "shared"


class SentinelNode(Node):
    """A single Sentinel that takes half a second of silence as a failure."""

    def __init__(self, folder: Path, master: Node) -> None:
        super().__init__(folder)
        (folder / "sentinel.conf").write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )

    def command(self) -> list[str]:
        """The command. Sentinel reads and writes one configuration file."""
        return [str(self.folder / "sentinel.conf"), "--sentinel", "--port", str(self.port), "--bind", "127.0.0.1"]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Node, Node, Node]]:
    """A master, its replica and their Sentinel."""
    folder = tmp_path_factory.mktemp("sentinel")
    master = Node(folder / "master", "--repl-diskless-sync-delay", "0")
    replica = Node(folder / "replica", "--replicaof", "127.0.0.1", str(master.port))
    sentinel = SentinelNode(folder / "sentinel", master)
    try:
        for node in (master, replica, sentinel):
            node.start()
        yield master, replica, sentinel
    finally:
        for node in (master, replica, sentinel):
            node.kill()


async def test_acknowledged_writes_survive_a_failover(
    nodes: tuple[Node, Node, Node],
) -> None:
    master, replica, sentinel = nodes
    url = f"redis+sentinel://{SERVER}:{PASSWORDS[SERVER]}@127.0.0.1:{node_port()},{sentinel.address}/{SERVICE}"
    async with sentinel.client() as asked, master.client() as old:
        await wait_until(lambda: _watches(asked))
        async with serving(url, embed_wait_seconds=0.1) as server, server.agent("alice", "team") as alice:
            await alice.store("before the failover")
            assert await old.execute_command("WAIT", 1, 5000) == 1
            master.kill()
            await wait_until(lambda: _finds(alice, ["before the failover"]))
            await alice.store("after the failover")
            assert set(await alice.search("failover", mode="keyword")) == {"before the failover", "after the failover"}
    async with replica.client() as new:
        assert (await new.execute_command("ROLE"))[0] == b"master"


async def _watches(sentinel: Client) -> bool:
    """Whether the Sentinel knows a replica to fail over to."""
    return "master-link-status': 'ok'" in repr(await sentinel.sentinel_slaves(SERVICE)).replace("b'", "'")


async def _finds(agent: Agent, contents: list[str]) -> bool:
    try:
        return await agent.search("failover", mode="keyword") == contents
    except Refused as refused:
        if refused.code != "store_unavailable":
            raise
        return False


async def test_single_redis_configured_as_a_cluster_is_refused(nodes: tuple[Node, Node, Node]) -> None:
    async with connect(f"redis+cluster://{nodes[1].address}") as client:
        with pytest.raises(UnsafeStart, match="no cluster"):
            await check_server(client)
