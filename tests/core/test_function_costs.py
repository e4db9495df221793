"""No Redis Function does an unbounded amount of work in one call."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from benchmarks import functions as benchmark
from benchmarks.functions import call_measured
from benchmarks.worst_cases.busy_namespace import CASES, BusyNamespace, Call, Request, agent
from benchmarks.worst_cases.sharing import share
from benchmarks.worst_cases.tasks import ASSIGNED, RANKED
from support import embedder_fixtures

from memory_core.records.codec import unpack
from memory_core.records.ids import new_id
from memory_core.records.keys import GROUP, digest
from memory_core.records.names import SEPARATOR
from memory_core.redis_client import Client
from memory_core.store.functions import library_code

server, client = embedder_fixtures.server, embedder_fixtures.client
OWNER, HOLDER, LABEL = agent(0), agent(1), digest("label")
PASSED_ON = 300
"""Grants under one grant: more than one call ends."""
MOST_COMMANDS = 1000
README = Path(benchmark.__file__).with_name("README.md")


@pytest_asyncio.fixture(loop_scope="session")
async def team(client: Client) -> AsyncGenerator[BusyNamespace]:
    """A namespace with some agents."""
    namespace = BusyNamespace(client)
    await namespace.open(PASSED_ON // 50 + 3)
    yield namespace


def functions() -> set[str]:
    """The names of all Functions of the library."""
    code = re.sub(r"--.*", "", library_code())
    return set(re.findall(r"(?:rm\.serve\(|function_name = )'(\w+)'", code))


def test_benchmark_has_a_worst_case_of_each_function() -> None:
    assert "rm1_release" in functions()
    assert functions() == {case.function for case in CASES}


def test_results_list_each_worst_case() -> None:
    rows = {tuple(cell.strip(" `") for cell in line.split("|")[1:3]) for line in README.read_text().splitlines()}
    assert {(case.function, case.case) for case in CASES} <= rows


async def _pass_on(team: BusyNamespace, number: int = PASSED_ON) -> str:
    """Let the holder of a grant pass on one memory to others, by several grants each. Returns the grant."""
    parent, token = new_id(), f"i:{new_id()}"
    entry = team.entry(parent, OWNER, HOLDER, [token], selector=digest(SEPARATOR.join(["t", LABEL])))
    await team.grants({parent: (HOLDER, entry)})
    via = {parent: {"tokens": [token], "at": 1, "ends": float("inf")}}
    receivers = {new_id(): agent(2 + position // 50) for position in range(number)}
    await team.grants({one: (to, team.entry(one, HOLDER, to, [], via=via)) for one, to in receivers.items()})
    return parent


async def _held(team: BusyNamespace) -> int:
    """How many grants all agents hold."""
    return sum([await team.client.hlen(team.keys.granted(agent(number))) for number in range(1, PASSED_ON // 50 + 3)])


async def _until_done(team: BusyNamespace, function: str, call: Call) -> list[dict[str, Any]]:
    """Call a Function until it is done; no call may run many commands. Returns the answers."""
    answers: list[dict[str, Any]] = []
    while not answers or answers[-1]["status"] == "more":
        _, commands, answer = await call_measured(team, function, call)
        assert commands <= MOST_COMMANDS
        answers.append(answer)
    return answers


async def test_revoke_ends_some_grants_a_call_and_the_grant_itself_last(team: BusyNamespace) -> None:
    parent = await _pass_on(team)
    request: Request = {"id": parent, "who": OWNER, "admin": False, "answers": False, "audit": team.audit(OWNER, "x")}
    call = Call([team.keys.audit, team.keys.counters], request)
    _, _, answer = await call_measured(team, "rm1_revoke", call)
    assert (answer["status"], answer["grants"]) == ("more", 32)
    assert await team.client.hexists(team.keys.granted(HOLDER), parent)
    answers = await _until_done(team, "rm1_revoke", call)
    assert answers[-1]["status"] == "revoked"
    assert 32 + sum(one["grants"] for one in answers) == PASSED_ON + 1
    assert await _held(team) == 0


async def test_share_without_write_ends_what_was_passed_on_in_slices(team: BusyNamespace) -> None:
    parent = await _pass_on(team)
    call = share(team, OWNER, HOLDER, "t", [LABEL], id=parent)
    _, _, answer = await call_measured(team, "rm1_share", call)
    entry = unpack(await team.client.hget(team.keys.granted(HOLDER), parent))
    assert (answer["status"], entry["permission"]) == ("more", "write")
    answers = await _until_done(team, "rm1_share", call)
    assert answers[-1]["status"] == "shared"
    assert await _held(team) == 1


async def test_shorter_share_shortens_what_was_passed_on_in_slices(team: BusyNamespace) -> None:
    parent = await _pass_on(team)
    call = share(team, OWNER, HOLDER, "t", [LABEL], id=parent, permission="write", seconds=60)
    (answer,) = await _until_done(team, "rm1_share", call)
    cursor, calls = answer["cursor"], 0
    while cursor != "0":
        following = Call([team.keys.counters], {"id": parent, "cursor": cursor})
        _, commands, answer = await call_measured(team, "rm1_shorten_passed_on", following)
        assert commands <= MOST_COMMANDS
        cursor, calls = answer["cursor"], calls + 1
    assert calls > 1
    for number in range(2, PASSED_ON // 50 + 2):
        entries = await team.client.hvals(team.keys.granted(agent(number)))
        assert {unpack(one)["via"][parent]["ends"] < 1e18 for one in entries} == {True}


async def test_expired_grants_end_in_slices(team: BusyNamespace) -> None:
    parent = await _pass_on(team)
    await team.client.zadd(team.keys.grants_due, {parent: 1})
    ended, more = 0, True
    while more:
        _, commands, answer = await call_measured(team, "rm1_expire_grants", Call([team.keys.grants_due], {}))
        assert commands <= MOST_COMMANDS
        ended, more = ended + answer["ended"], answer["more"]
    assert ended == PASSED_ON + 1
    assert await _held(team) == 0


async def test_agent_that_leaves_ends_its_grants_in_slices(team: BusyNamespace) -> None:
    await _pass_on(team)
    owner = team.owners[HOLDER]
    request = {
        "agent": HOLDER, "memories": "keep", "target": "", "known": [owner], "proofs": {owner: "c"},
        "audit": team.audit(HOLDER, "unregister_agent"),
    }  # fmt: skip
    answers = await _until_done(team, "rm1_agent_unregister", Call([team.keys.agent(HOLDER)], request))
    assert answers[-1]["status"] == "unregistered"
    assert len(answers) > 5
    assert sum(one["grants"] for one in answers) == PASSED_ON + 1
    assert await _held(team) == 0


async def test_memory_is_passed_on_by_128_grants_at_most(team: BusyNamespace) -> None:
    (memory_id,) = await team.stored(1, OWNER, long=False)
    parent = new_id()
    await team.grants({parent: (HOLDER, team.entry(parent, OWNER, HOLDER, [f"i:{memory_id}"]))})
    links = team.keys.reshared(memory_id)
    await team.client.sadd(links, *[new_id() for _ in range(127)])
    call = share(team, HOLDER, agent(2), "i", [memory_id])
    assert (await team.call("rm1_share", call.keys, call.request))["status"] == "shared"
    again = await team.call("rm1_share", call.keys, call.request)
    assert again["status"] == "shared", "renewed"
    other = share(team, HOLDER, agent(3), "i", [memory_id])
    assert (await team.call("rm1_share", other.keys, other.request))["status"] == "passed_on_too_often"
    assert await team.client.scard(links) == 128


async def test_heartbeat_runs_two_commands_per_lease(team: BusyNamespace) -> None:
    leases = await team.leased(100, HOLDER)
    request = {"agent": HOLDER, "fields": [], "tokens": [*leases.values(), "unknown"], "audit": None}
    call = Call([team.keys.agent(HOLDER)], request, {"lost": ["unknown"]})
    _, commands, answer = await call_measured(team, "rm1_agent_heartbeat", call)
    assert [token for token, _ in answer["renewed"]] == list(leases.values())
    ends = dict(answer["renewed"])
    for task_id, token in leases.items():
        assert await team.client.zscore(team.keys.leases, task_id) == pytest.approx(float(ends[token]))
    assert commands <= 2 * 100 + 20


@pytest.mark.parametrize("number", [1, 200])
async def test_transfer_runs_three_commands_per_owner_id(team: BusyNamespace, number: int) -> None:
    owners, keys = [new_id() for _ in range(number)], team.keys
    await team.client.hset(keys.agent("left"), "kept", SEPARATOR.join(owners))
    offer = {
        "agent": "left", "target": HOLDER, "id": new_id(), "offer_seconds": 60, "count": 1, "known": owners,
        "audit": team.audit("operator", "offer"),
    }  # fmt: skip
    assert (await team.call("rm1_offer_kept", [keys.agent("left")], offer))["status"] == "offered"
    request = {"agent": HOLDER, "id": offer["id"], "audit": team.audit(HOLDER, "answer_offer")}
    call = Call([keys.audit, keys.counters, keys.agent(HOLDER)], request)
    _, commands, answer = await call_measured(team, "rm1_accept_transfer", call)
    assert answer["status"] == "accepted"
    assert commands <= 3 * number + 40
    held = (await team.client.hget(keys.agent(HOLDER), "owners")).decode().split(SEPARATOR)
    assert held == [team.owners[HOLDER], *owners]
    assert await team.client.hget(keys.owner(owners[-1]), "agent") == HOLDER.encode()


async def test_assignment_reads_a_bounded_number_of_candidates(team: BusyNamespace) -> None:
    names = [agent(number) for number in range(8)]
    ids = await team.submitted(ASSIGNED, OWNER)
    pipe = team.client.pipeline(transaction=False)
    for name in names:
        pipe.hset(team.keys.agent(name), "max_tasks", 0)
    await pipe.execute()
    candidates = (names * RANKED)[:RANKED]
    request: Request = {"items": [{"id": one, "candidates": candidates} for one in ids]}
    _, commands, _ = await call_measured(team, "rm1_task_assign", Call([team.keys.leases], request))
    assert commands <= 4 * ASSIGNED * RANKED <= MOST_COMMANDS


async def test_requeue_removes_lost_jobs_of_half_precision_vectors(team: BusyNamespace) -> None:
    assert team.model.half
    stream = team.keys.jobs(team.model.name)
    (memory_id,) = await team.stored(1, OWNER, long=False, vector=False)
    lost = [entry.decode() for entry, _ in await team.client.xrange(stream)]
    item = {"id": memory_id, "piece": 0, "rev": 1, "hash": digest(memory_id), "job": {"body": "text"}}
    request: Request = {"group": GROUP, "model": team.model.name, "items": [item], "lost": lost}
    call = Call([team.keys.job_streams, team.keys.memory(memory_id)], request, {"queued": 1})
    await call_measured(team, "rm1_requeue", call)
    assert [entry.decode() in lost for entry, _ in await team.client.xrange(stream)] == [False]
