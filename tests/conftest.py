"""What all tests share: the developer's settings kept out, one real stack for those that do not break it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, contextmanager
from fcntl import LOCK_EX, flock
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator
from support.redis_users import denials
from support.stack import MASTER_KEY, Agent, Server, Stack, in_own_task, whole_stack

from memory_core.records.keys import AUDITED, LIBRARY_PROOF, NAMESPACES, SESSION_KEY
from memory_server.service import Service

_numbers = count()
"""That of the session's stack."""


def pytest_configure() -> None:
    """Keep the developer's settings out of the tests."""
    for name in list(os.environ):
        if name == "REDIS_URL" or (name.startswith("MEMORY_") and name != "MEMORY_EVAL_DATA"):
            del os.environ[name]
    _make_connections_cheap()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One worker more than cores: tests spend a third of their time waiting."""
    return (os.cpu_count() or 1) + 1


def _make_connections_cheap() -> None:
    """Save some 40 ms of CPU time per agent that connects: tests connect thousands of them.

    An HTTP client loads all trusted certificates, and no test needs them: here it looks in a folder that has none.
    An MCP client checks the schema of each tool that it calls: here the first client of a process does it for all.
    """
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)
    check, checked = Draft202012Validator.check_schema, set[str]()

    def check_once(schema: Any, *others: Any, **named: Any) -> None:
        text = json.dumps(schema, sort_keys=True)
        if text not in checked:
            check(schema, *others, **named)
            checked.add(text)

    Draft202012Validator.check_schema = check_once


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Stack]:
    """The stack of the session. Afterwards no key may be left that should have gone by itself, and
    Redis may have refused nothing to the users of redis/users.acl."""
    folder, options = tmp_path_factory.mktemp("stack"), {"embed_wait_seconds": 15.0, "master_key": MASTER_KEY}
    async with AsyncExitStack() as opened:
        with _one_worker_at_a_time(tmp_path_factory):
            running = await opened.enter_async_context(whole_stack(folder, **options))
        yield running
        running.sidecar.check_running()
        await _check_left_keys(running)
        assert not await denials(running.client)


@contextmanager
def _one_worker_at_a_time(folders: pytest.TempPathFactory) -> Generator[None]:
    """On a new machine the first sidecar tries the engines; the others find what it measured."""
    with (folders.getbasetemp().parent / "stack.lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


@pytest.fixture
def server(stack: Stack) -> Server:
    """The server of the session's stack."""
    return stack.server


@pytest.fixture
def service(server: Server) -> Service:
    """What the server of the session works with."""
    return server.service


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"test-{next(_numbers)}"


@pytest_asyncio.fixture(loop_scope="session")
async def alice(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """An agent."""
    async with in_own_task(server.agent("alice", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def bob(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """Another agent in the same namespace."""
    async with in_own_task(server.agent("bob", namespace)) as agent:
        yield agent


async def _check_left_keys(stack: Stack) -> None:
    """Only keys that live as long as their namespace may be without an expiry; memories say it themselves."""
    lasting = (
        ":meta",
        ":counters",
        ":jobs",
        ":audit",
        ":seals",
        ":agent:",
        ":owner:",
        ":seq:",
        ":same:",
        ":mem:",
        ":use:",
        ":chunk:",
        ":events",
        ":agents",
        ":task:",
        ":history:",
        ":tasks:",
        ":held:",
        ":backlog:",
        ":kinds",
        ":leases",
        ":delayed",
        ":unclaimed",
        ":deadlines",
        ":blockers:",
        ":dependents:",
        ":perf:",
        ":did:",
        ":turns",
        ":submitted:",
        ":taskvec:",
        ":dead",
        ":grant:",
        ":granted:",
        ":granting:",
        ":offers:",
        ":children:",
        ":reshared:",
        ":grants:due",
        ":tombstones",
        ":tokens",
        ":key:",
        ":keyed",
        ":quarantined",
    )
    offenders: list[str] = []
    async for raw in stack.client.scan_iter(count=1000):
        key = raw.decode()
        lasting_alone = {NAMESPACES, AUDITED, LIBRARY_PROOF, SESSION_KEY, "rm:sidecars"}
        if key in lasting_alone or key.startswith(("rm:bell:", "rm:asks:", "rm:bulk:")):
            continue
        if await stack.client.ttl(key) != -1:
            continue
        piece = ":mem:" in key or ":chunk:" in key
        forever = piece and await stack.client.hget(key, "expires_at") != b"inf"
        if forever or not any(part in key for part in lasting):
            offenders.append(key)
    assert not offenders, f"keys left without expiry: {offenders[:20]}"
