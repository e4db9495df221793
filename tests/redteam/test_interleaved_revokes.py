"""Holders of grants pass on, leave and change memories between the slices in which a grant ends."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncGenerator
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from benchmarks.worst_cases.busy_namespace import BusyNamespace
from benchmarks.worst_cases.sharing import share
from support import embedder_fixtures

from memory_core.records.codec import unpack
from memory_core.records.keys import digest
from memory_core.records.names import SEPARATOR
from memory_core.redis_client import Client
from memory_core.store.functions import library_code

pytestmark = pytest.mark.redteam
server, client = embedder_fixtures.server, embedder_fixtures.client
AGENTS = ("alice", "bob", "carol", "dan")
TAGS = [digest(f"tag-{number}") for number in range(2)]
STEPS = 200
_namespaces = count()


@pytest_asyncio.fixture(loop_scope="session")
async def sliced(client: Client) -> AsyncGenerator[Client]:
    """A Redis whose Functions end one grant a call."""
    code = library_code()
    assert code.count("local AT_ONCE = 32\n") == 1
    yield client
    await client.execute_command("FUNCTION", "LOAD", "REPLACE", code)


class Team(BusyNamespace):
    """Four agents that share at random, and what must hold of their grants."""

    def __init__(self, client: Client, seed: int) -> None:
        super().__init__(client, f"slices-{next(_namespaces)}")
        self.random = random.Random(seed)  # nosec B311
        self.ids: list[str] = []
        self.tally = Counter[str]()

    async def start(self) -> None:
        await self.open(0)
        code = library_code().replace("local AT_ONCE = 32\n", "local AT_ONCE = 1\n")
        await self.client.execute_command("FUNCTION", "LOAD", "REPLACE", code)
        for name in AGENTS:
            await self.register(name)
            self.ids += await self.stored(2, name, long=False)

    async def step(self) -> None:
        """One random act."""
        acts = [self.share] * 24 + [self.revoke] * 4 + [self.relabel] * 3 + [self.leave]
        await self.random.choice(acts)()
        await self.check()

    async def share(self) -> None:
        by, to = self.random.sample(AGENTS, 2)
        kind = self.random.choice("it")
        values = self.random.sample(self.ids if kind == "i" else TAGS, self.random.randint(1, 2))
        call = share(self, by, to, kind, values, permission=self.random.choice(["read", "write", "write"]))
        call.request.update({"proof": None, "selector": digest(SEPARATOR.join([kind, *sorted(values)]))})
        while (answer := await self.call("rm1_share", call.keys, call.request))["status"] == "more":
            self.tally["share in slices"] += 1
            if self.random.random() < 0.3:
                return
        self.tally[f"share {answer['status']}"] += 1

    async def revoke(self) -> None:
        """Revoke a grant, or go on with an interrupted revoke; others may act between the slices."""
        given = [(grant, by) for by in AGENTS for grant in await self.members(self.keys.granting(by))]
        if not given:
            return
        grant, by = self.random.choice(given)
        for _ in range(8):
            if not await self.client.scard(self.keys.children(grant)):
                grant, by = self.random.choice(given)
        request = {"id": grant, "who": by, "admin": False, "answers": False, "audit": self.audit(by, "revoke")}
        while (await self.call("rm1_revoke", [self.keys.audit, self.keys.counters], request))["status"] == "more":
            self.tally["revoke in slices"] += 1
            await self.check()
            match self.random.randrange(4):
                case 0:
                    return
                case 1:
                    await self.share()
                case 2:
                    await self.relabel()
                case _:
                    pass
        assert not await self.client.scard(self.keys.children(grant))
        for name in AGENTS:
            for entry in (await self.entries(name)).values():
                assert grant not in entry["via"]
        self.tally["revoked"] += 1

    async def relabel(self) -> None:
        """Give a memory another tag."""
        memory = self.random.choice(self.ids)
        mem, keys = self.keys.memory(memory), self.keys
        owner, rev, scope, content, writer = (
            value.decode() for value in await self.client.hmget(mem, "owner", "rev", "scope", "hash", "writer")
        )
        tokens = {token for token in scope.split(SEPARATOR) if not token.startswith("t:")}
        tokens |= {f"t:{owner}:{tag}" for tag in self.random.sample(TAGS, self.random.randint(0, 2))}
        request: dict[str, Any] = {
            "id": memory, "rev": int(rev), "owners": [owner], "grants": [], "growth": 0, "most_growth": 0,
            "fields": ["scope", SEPARATOR.join(sorted(tokens))], "remove": [], "relive": False,
            "content_changed": False, "pieces": 1, "grace": 1, "seal": self.seal(memory, int(rev) + 1), "was": None,
            "job": {"body": ""}, "audit": self.audit(writer, "update_memory", [memory]),
        }  # fmt: skip
        same = keys.same(owner, content)
        named = [
            mem, keys.job_streams, keys.audit, keys.counters, keys.use(memory), same, same, keys.chores,
            keys.seq(owner), keys.events, keys.granted(writer), keys.agent(writer), keys.data_key(owner),
        ]  # fmt: skip
        self.tally[f"relabel {(await self.call('rm1_update', named, request))['status']}"] += 1

    async def leave(self) -> None:
        """An agent leaves, perhaps not to the end, and comes back."""
        name = self.random.choice(AGENTS)
        owners = (await self.client.hget(self.keys.agent(name), "owners") or b"").decode().split(SEPARATOR)
        request = {
            "agent": name, "memories": "keep", "target": "", "known": owners, "proofs": None,
            "audit": self.audit(name, "unregister_agent"),
        }  # fmt: skip
        while (await self.call("rm1_agent_unregister", [self.keys.agent(name)], request))["status"] == "more":
            self.tally["leave in slices"] += 1
            await self.check()
            if self.random.random() < 0.2:
                return
            if self.random.random() < 0.5:
                await self.share()
        for key in (self.keys.granted(name), self.keys.offers(name), self.keys.granting(name)):
            assert not await self.client.exists(key)
        self.tally["left"] += 1
        await self.register(name)
        self.ids = [one for one in self.ids if await self.client.hget(self.keys.memory(one), "writer") != name.encode()]
        self.ids += await self.stored(2, name, long=False)

    async def members(self, key: str) -> list[str]:
        """A set in a fixed order."""
        return sorted(one.decode() for one in await self.client.smembers(key))

    async def entries(self, name: str) -> dict[str, dict[str, Any]]:
        """The grants that an agent holds."""
        found = await self.client.hgetall(self.keys.granted(name))
        entries = {grant.decode(): unpack(entry) for grant, entry in found.items()}
        return {grant: entry | {"via": dict(entry["via"])} for grant, entry in entries.items()}

    async def check(self) -> None:
        """Each grant gives what its grantor may give now, and is found from all that it depends on."""
        held = {name: await self.entries(name) for name in AGENTS}
        passing: dict[str, set[str]] = {}
        for name, entries in held.items():
            current = (await self.client.hget(self.keys.agent(name), "owner") or b"").decode()
            for grant, entry in entries.items():
                assert entry["owner"] == current, "held by a later agent of the name"
                by_owner = (await self.client.hget(self.keys.agent(entry["by"]), "owner") or b"").decode()
                assert entry["by_owner"] == by_owner, "given by an earlier agent of the name"
                assert entry["own"] or entry["via"], "an empty grant"
                assert grant in await self.members(self.keys.granting(entry["by"]))
                for parent, part in entry["via"].items():
                    above = held[entry["by"]].get(parent)
                    assert above, "passed on under a grant that ended"
                    assert above["permission"] == "write"
                    assert grant in await self.members(self.keys.children(parent))
                    for token in part["tokens"]:
                        if token.startswith("i:"):
                            scope = await self.client.hget(self.keys.memory(token[2:]), "scope") or b""
                            assert set(scope.decode().split(SEPARATOR)) & set(above["own"]), "no longer covered"
                            passing.setdefault(token[2:], set()).add(grant)
                        else:
                            assert token in above["own"]
        for memory in self.ids:
            assert set(await self.members(self.keys.reshared(memory))) == passing.get(memory, set())


@pytest.mark.parametrize("seed", range(3))
async def test_no_grant_outlives_what_it_depends_on(sliced: Client, seed: int) -> None:
    team = Team(sliced, seed)
    await team.start()
    for _ in range(STEPS):
        await team.step()
    assert {"revoke in slices", "leave in slices", "revoked"} <= team.tally.keys()
