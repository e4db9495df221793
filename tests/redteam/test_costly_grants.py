"""Two agents that share with many others make one call of a Function hold up Redis for everybody."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio
from benchmarks.functions import call_measured
from benchmarks.worst_cases.busy_namespace import BusyNamespace, Call, agent
from benchmarks.worst_cases.sharing import share
from support import embedder_fixtures

from memory_core.records.keys import digest
from memory_core.records.names import SEPARATOR
from memory_core.redis_client import Client

pytestmark = pytest.mark.redteam
server, client = embedder_fixtures.server, embedder_fixtures.client
OWNER, *HOLDERS = [agent(number) for number in range(4)]
HOLDER = HOLDERS[0]
RECEIVERS = [agent(4 + number) for number in range(64)]
MOST_MS, MOST_COMMANDS = 15.0, 1500


@pytest_asyncio.fixture(loop_scope="session")
async def team(client: Client) -> AsyncGenerator[BusyNamespace]:
    """A namespace with some agents."""
    namespace = BusyNamespace(client)
    await namespace.open(4 + len(RECEIVERS))
    yield namespace


async def shared(team: BusyNamespace, by: str, to: str, ids: list[str], permission: str = "read") -> str:
    """Share memories by their ids, within all limits of the Function. Returns the grant."""
    call = share(team, by, to, "i", ids, permission=permission)
    call.request["proof"] = None
    return (await team.all("rm1_share", [call]))[0]["id"]


async def test_update_of_a_memory_passed_on_under_many_grants_is_cheap(team: BusyNamespace) -> None:
    memory, *others = await team.stored(65, OWNER, long=False)
    for holder in HOLDERS:
        for other in others:
            await shared(team, OWNER, holder, [memory, other], "write")
    for position, holder in enumerate(HOLDERS):
        for receiver in RECEIVERS[: 64 >> position]:
            await shared(team, holder, receiver, [memory])
    keys, mem = team.keys, team.keys.memory(memory)
    found = await team.client.hmget(mem, "owner", "rev", "scope", "hash")
    owner, rev, scope, content = (value.decode() for value in found)
    request = {
        "id": memory, "rev": int(rev), "owners": [owner], "grants": [], "growth": 0, "most_growth": 0,
        "fields": ["scope", SEPARATOR.join([*scope.split(SEPARATOR), f"t:{owner}:{digest('new')}"])],
        "remove": [], "relive": False, "content_changed": False, "pieces": 1, "grace": 1,
        "seal": team.seal(memory, 2), "was": None, "job": {"body": ""},
        "audit": team.audit(OWNER, "update_memory", [memory]),
    }  # fmt: skip
    same = keys.same(owner, content)
    named = [
        mem, keys.job_streams, keys.audit, keys.counters, keys.use(memory), same, same, keys.chores, keys.seq(owner),
        keys.events, keys.granted(OWNER), keys.agent(OWNER), keys.data_key(owner),
    ]  # fmt: skip
    _, commands, answer = await call_measured(team, "rm1_update", Call(named, request))
    assert answer["status"] == "updated"
    assert await team.client.scard(keys.reshared(memory)) == 64 + 32 + 16
    assert commands < MOST_COMMANDS


async def test_revoke_of_a_grant_whose_children_have_other_parents_is_cheap(team: BusyNamespace) -> None:
    ids = await team.stored(100, OWNER, long=False)
    first, rest = ids[:50], ids[50:]
    parent = await shared(team, OWNER, HOLDER, first, "write")
    for number in range(9):
        await shared(team, OWNER, HOLDER, rest[number:], "write")
    for receiver in RECEIVERS:
        await shared(team, HOLDER, receiver, ids)
    request = {"id": parent, "who": OWNER, "admin": False, "answers": False, "audit": team.audit(OWNER, "revoke")}
    call = Call([team.keys.audit, team.keys.counters], request)
    slices = [await call_measured(team, "rm1_revoke", call) for _ in range(2)]
    assert [answer["status"] for _, _, answer in slices] == ["more", "revoked"]
    assert min(spent for spent, _, _ in slices) < MOST_MS


async def test_one_holder_cannot_keep_others_from_passing_on_a_memory(team: BusyNamespace) -> None:
    other, receiver = RECEIVERS[-1], RECEIVERS[0]
    memory, *own = await team.stored(1, OWNER, long=False) + await team.stored(128, HOLDER, long=False)
    for holder in (HOLDER, other):
        await shared(team, OWNER, holder, [memory], "write")
    passed = 0
    for number, mine in enumerate(own):
        call = share(team, HOLDER, RECEIVERS[number % 4], "i", [memory, mine])
        call.request["proof"] = None
        passed += (await team.call("rm1_share", call.keys, call.request))["status"] == "shared"
    assert passed >= 64
    await shared(team, other, receiver, [memory])
