"""What looks like a credential is reported, redacted, encrypted or refused, and never attached unasked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.stack import Refused, Server, Stack, in_own_task, serving

from memory_core.errors import InvalidArgument, UnsafeStart
from memory_core.settings.settings import Settings
from memory_server.local.running import keyring_of
from memory_server.transfer.importer import ImportOptions, import_path

SECRET = "The staging database password is hunter2!"
KEY = "0123456789abcdef" * 4


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["redact", "seal", "refuse"])
async def strict(stack: Stack, request: pytest.FixtureRequest) -> AsyncGenerator[tuple[str, Server]]:
    policy = request.param
    key = {"master_key": KEY}
    async with in_own_task(serving(stack.redis.url, secrets=policy, embed_wait_seconds=15.0, **key)) as server:
        yield policy, server


async def read(agent: Any, memory: str) -> Any:
    return (await agent.call("retrieve_memory", memory_id=memory))["memory"]


async def test_default_is_to_store_and_say_so(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as alice:
        answer = await alice.call("store_memory", content=SECRET)
        assert answer["secrets"] == {"kinds": ["password"], "action": "stored"}
        assert (await read(alice, answer["memory_id"]))["content"] == SECRET
        assert "Looks like a credential (password)" in str((await alice.raw("store_memory", content=SECRET)).content)
        assert (await alice.call("store_memory", content="The password is incorrect.")).get("secrets") is None
        changed = await alice.call("update_memory", memory_id=answer["memory_id"], metadata={"password": "swordfish"})
        assert changed["secrets"]["kinds"] == ["password"]


@pytest.mark.parametrize("field", ["content", "metadata"])
async def test_strict_policies_keep_the_secret_out_of_clear_text(
    strict: tuple[str, Server], namespace: str, field: str
) -> None:
    policy, server = strict
    namespace = f"{namespace}-{policy}-{field}"
    value: Any = {"content": SECRET} if field == "content" else {"content": "DB", "metadata": {"password": "hunter2!"}}
    async with server.agent("alice", namespace) as alice:
        if policy == "refuse":
            with pytest.raises(Refused, match="look like a credential"):
                await alice.call("store_memory", **value)
        else:
            answer = await alice.call("store_memory", **value)
            memory = await read(alice, answer["memory_id"])
            assert answer["secrets"]["action"] == {"redact": "redacted", "seal": "encrypted"}[policy]
            assert memory["sensitive"] is (policy == "seal")
            assert ("hunter2" in str(memory)) is (policy == "seal")
        ordinary = await alice.store("Ordinary.")
        if policy == "redact":
            changed = await alice.call("update_memory", memory_id=ordinary, **value)
            assert "hunter2" not in str(changed)
        else:
            with pytest.raises(Refused, match="look like a credential"):
                await alice.call("update_memory", memory_id=ordinary, **value)
    client = server.service.backend
    stored = [await client.read(lambda c, k=key: c.dump(k)) async for key in keys_of(server, namespace)]
    assert not any(b"hunter2" in (dump or b"") for dump in stored)


async def keys_of(server: Server, namespace: str) -> AsyncGenerator[bytes]:
    found: list[bytes] = await server.service.backend.read(lambda c: c.keys(f"rm:{{{namespace}}}:*"))
    assert found
    for key in found:
        yield key


@pytest.mark.parametrize("where", ["tags", "context", "source"])
async def test_strict_policies_refuse_a_secret_in_a_label(
    strict: tuple[str, Server], namespace: str, where: str
) -> None:
    policy, server = strict
    secret: Any = ["password is hunter2"] if where == "tags" else "password is hunter2"
    async with server.agent("alice", f"{namespace}-{policy}") as alice:
        for sensitive in (False, True):
            with pytest.raises(Refused, match=r"tags, context or source.*never encrypted"):
                await alice.call("store_memory", content="DB", sensitive=sensitive, **{where: secret})


async def test_public_memory_is_not_encrypted_but_refused(strict: tuple[str, Server], namespace: str) -> None:
    policy, server = strict
    async with server.agent("alice", f"{namespace}-{policy}") as alice:
        if policy == "redact":
            return
        with pytest.raises(Refused, match="look like a credential"):
            await alice.call("store_memory", content=SECRET, visibility="public")


def test_seal_without_a_master_key_does_not_start() -> None:
    with pytest.raises(UnsafeStart, match="secrets=seal needs a master key"):
        keyring_of(Settings.load(secrets="seal"), None)


async def test_similar_shows_the_same_fact_only(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as alice:
        await alice.store(SECRET)
        deploy = await alice.store("Deploys run on Fridays at noon.")
        other = await alice.call("store_memory", content="The build moved to a new runner.")
        assert other["similar"] == []
        same = await alice.call("store_memory", content="The deploy happens every Friday at 12:00.")
        assert [near["memory_id"] for near in same["similar"]] == [deploy]


async def test_similar_never_shows_a_credential_or_a_sensitive_memory(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as alice:
        await alice.store(SECRET)
        await alice.store("The staging database uses TLS.", sensitive=True)
        for content in ("The staging database password is hunter3!", "The staging database uses TLS."):
            for sensitive in (False, True):
                assert (await alice.call("store_memory", content=content, sensitive=sensitive))["similar"] == []


async def test_tasks_come_with_memories_on_their_subject_only(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as alice:
        await alice.call("register_agent", agent_id="alice")
        about = await alice.store("The importer fails on files with two headers.")
        for content, sensitive in (
            (SECRET, False),
            ("The importer runs at night.", True),
            ("Lunch is at noon.", False),
        ):
            await alice.store(content, sensitive=sensitive)
        await alice.call("distribute_task", description="Fix the importer's failure on two headers", assign_to="alice")
        (task,) = (await alice.call("get_pending_tasks"))["tasks"]
        assert [hit["memory"]["memory_id"] for hit in task["memories"]] == [about]


@pytest.mark.parametrize("policy", ["warn", "redact", "refuse", "seal"])
async def test_import_of_foreign_memories_follows_the_policy(
    stack: Stack, namespace: str, tmp_path: Path, policy: str
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "database.md").write_text(SECRET)
    options = ImportOptions(agent="alice")
    async with serving(stack.redis.url, master_key=KEY, namespace=namespace, secrets=policy) as server:
        if policy == "refuse":
            with pytest.raises(InvalidArgument, match="look like a credential"):
                await import_path(server.service, namespace, tmp_path / "notes", options)
            return
        report = await import_path(server.service, namespace, tmp_path / "notes", options)
        assert any("1 memory. Looks like a credential (password)" in note for note in report.notes)
        async with server.agent("alice", namespace) as alice:
            (memory,) = (await alice.call("get_agent_memories"))["memories"]
    assert ("hunter2" in memory["content"], memory["sensitive"]) == (policy != "redact", policy == "seal")


async def test_long_content_is_examined_without_holding_up_others(server: Server, namespace: str) -> None:
    async with server.agent("alice", namespace) as alice:
        content = "password is x and more words. " * 30_000
        gaps, began = [0.0], time.perf_counter()

        async def tick() -> None:
            nonlocal began
            while True:
                await asyncio.sleep(0.005)
                now = time.perf_counter()
                gaps.append(now - began)
                began = now

        ticking = asyncio.create_task(tick())
        answer = await alice.call("store_memory", content=content, wait=False)
        ticking.cancel()
        assert answer.get("secrets") is None
        assert max(gaps) < 1.0
