"""Required behaviour of tasks, through calls of the Functions only. Every mutation must break one of these."""

from __future__ import annotations

import time

from memory_core.records.codec import pack, unpack
from memory_core.records.ids import new_id
from memory_core.records.task import TaskPriority
from support.embedder_fixtures import wait_until
from support.task_functions import AT_ONCE, KEEP, TaskNamespace

EMPTY = {"leases": 0, "unclaimed": 0, "held": 0, "inbox": 0}


async def wrong_token_is_refused(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.submit()
    token = await tasks.lease("a")
    head, fence, _ = token.split(".")
    assert await tasks.complete("a", f"{head}.{fence}.guess") == "stale"
    assert (await tasks.fail("a", f"{head}.{fence}.guess"))["status"] == "stale"
    assert (await tasks.heartbeat("a", f"{head}.{fence}.guess"))["lost"] == [f"{head}.{fence}.guess"]
    assert await tasks.complete("a", token) == "completed"


async def token_ends_with_its_attempt(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit()
    token = await tasks.lease("a")
    await tasks.fail("a", token)
    await tasks.sweep()
    await tasks.assign(task, "a")
    assert await tasks.field(task, "assigned") == "a"
    assert (await tasks.heartbeat("a", token))["lost"] == [token]
    assert (await tasks.fail("a", token))["status"] == "stale"


async def token_ends_with_its_lease(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.submit(lease=AT_ONCE)
    token = await tasks.lease("a")
    assert (await tasks.heartbeat("a", token))["lost"] == [token]
    await tasks.sweep()
    assert (await tasks.heartbeat("a", token))["lost"] == [token]


async def late_result_counts_until_another_has_the_task(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    for ends in ("unswept", "pending", "assigned", "retrying"):
        task = await tasks.submit(lease=AT_ONCE)
        token = await tasks.lease("a")
        if ends == "retrying":
            await tasks.fail("a", token, pause=100)
            assert await tasks.state(task) == "retrying"
        elif ends != "unswept":
            await tasks.sweep()
        if ends == "assigned":
            await tasks.assign(task, "b")
            assert await tasks.field(task, "assigned") == "b"
        assert await tasks.complete("a", token) == "completed", ends
        assert await tasks.field(task, "attempt") == "1"
        assert await tasks.held_counts("b") == EMPTY
        assert await tasks.client.hlen(tasks.keys.kinds) == 0


async def late_failure_counts_once(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    for sweeps in (0, 1):
        task = await tasks.submit(lease=AT_ONCE, retries=1)
        token = await tasks.lease("a")
        for _ in range(sweeps):
            await tasks.sweep()
            await tasks.assign(task, "b")
        assert (await tasks.fail("a", token, pause=100))["status"] in {"retrying", "reassigned"}
        assert await tasks.state(task) == "retrying"
        assert await tasks.field(task, "attempt") == "1"
        assert await tasks.claim("b") == []
        assert await tasks.held_counts("b") == EMPTY
        assert (await tasks.fail("a", token))["status"] == "stale"
        await tasks.cancel(task)


async def late_result_is_refused_when_the_task_was_given_again(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(lease=AT_ONCE)
    first = await tasks.lease("a")
    await tasks.sweep()
    second = await tasks.lease("b")
    assert await tasks.complete("a", first) == "stale"
    await tasks.sweep()
    assert await tasks.complete("a", first) == "stale"
    assert await tasks.complete("a", second) == "stale"
    third = await tasks.lease("b")
    assert await tasks.complete("b", second) == "stale"
    assert await tasks.complete("b", third) == "completed"
    assert await tasks.state(task) == "completed"


async def late_result_of_an_ended_task_is_refused(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    for by in ("cancel", "deadline", "requeue"):
        task = await tasks.submit(lease=AT_ONCE, retries=0, deadline=time.time() + 100)
        token = await tasks.lease("a")
        await tasks.sweep()
        if by == "cancel":
            await tasks.cancel(task)
        else:
            await tasks.client.zadd(tasks.keys.deadlines, {task: 1})
            await tasks.sweep()
            assert await tasks.state(task) == "dead"
        if by == "requeue":
            assert (await tasks.requeue(task))["status"] == "pending"
        assert await tasks.complete("a", token) == "stale", by
        await tasks.cancel(task)


async def silence_costs_no_attempt(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(lease=AT_ONCE, retries=0)
    for _ in range(4):
        (lease,) = await tasks.claim("a")
        assert lease["attempt"] == 1
        await tasks.sweep()
        assert await tasks.state(task) == "pending"
    await tasks.client.hset(tasks.keys.task(task), "lease_seconds", 60)
    assert (await tasks.fail("a", await tasks.lease("a")))["status"] == "dead"


async def task_whose_leases_keep_expiring_ends(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(lease=AT_ONCE, retries=100)
    for _ in range(32):
        await tasks.lease("a")
        await tasks.sweep()
    assert await tasks.state(task) == "dead"


async def silent_agent_keeps_what_it_leased(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    leased = await tasks.submit()
    token = await tasks.lease("a")
    assigned = await tasks.submit(to=["a"])
    await tasks.client.zadd(tasks.keys.agents, {"a": 1})
    answer = await tasks.declare_dead("a")
    assert (answer["status"], answer["taken"], answer["more"]) == ("dead", 1, False)
    assert await tasks.state(leased) == "leased"
    (lease,) = await tasks.claim("b", 5)
    assert lease["id"] == assigned
    assert await tasks.complete("a", token) == "completed"


async def calls_renew_the_leases_of_their_session(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(lease=60)
    await tasks.claim("a", session="one")
    for session, is_renewed in (("two", False), ("one", True)):
        await _let_pass(tasks, task, 25)
        before = float(await tasks.field(task, "lease_until") or 0)
        (pause,) = await tasks.seen("a", session)
        after = float(await tasks.field(task, "lease_until") or 0)
        assert (after > before + 20) is is_renewed, session
        assert await tasks.client.zscore(tasks.keys.leases, task) == after
        assert 0 < pause <= 15
    assert await tasks.seen("stranger", "one") == [-1]


async def calls_do_not_renew_beyond_deadline_or_progress(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    now = time.time()
    bounded, unattended = await tasks.submit(lease=60, deadline=now + 45), await tasks.submit(lease=60)
    await tasks.claim("a", 2, session="one")
    assert float(await tasks.field(bounded, "lease_until") or 0) < now + 46
    for task in (bounded, unattended):
        await _let_pass(tasks, task, 30)
    await tasks.client.hset(tasks.keys.task(unattended), "progress_at", now + 40 - 8 * 3600)
    await tasks.seen("a", "one")
    assert now + 44 < float(await tasks.field(bounded, "lease_until") or 0) < now + 46
    assert now + 39 < float(await tasks.field(unattended, "lease_until") or 0) < now + 41
    await tasks.heartbeat("a", await tasks.field(unattended, "lease_token") or "")
    assert float(await tasks.field(unattended, "progress_at") or 0) >= now - 1


async def expired_lease_is_not_renewed_by_calls(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(lease=AT_ONCE)
    await tasks.claim("a", session="one")
    await tasks.client.hset(tasks.keys.task(task), "lease_seconds", 60)
    await tasks.seen("a", "one")
    await tasks.sweep()
    assert await tasks.state(task) == "pending"


async def calls_keep_an_agent_alive(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.client.zadd(tasks.keys.agents, {"a": 1})
    await tasks.seen("a", "one")
    assert (await tasks.declare_dead("a"))["status"] == "alive"


async def new_session_takes_over_from_one_that_ended(tasks: TaskNamespace) -> None:
    await tasks.register("a", capacity=1)
    task = await tasks.submit()
    (first,) = await tasks.claim("a", session="one")
    assert await tasks.hands("a", "one") == ([], [first["lease_token"]], [])
    assert await tasks.hands("a", "two") == ([], [], [task])
    assert await tasks.hands("a", "") == ([], [], [task])
    await tasks.end_session("a", "one")
    (second,), mine, elsewhere = await tasks.hands("a", "two")
    assert (mine, elsewhere) == ([], [])
    assert second.split(".")[1] > first["lease_token"].split(".")[1]
    assert await tasks.field(task, "attempt") == "1"
    assert await tasks.hands("a", "two") == ([], [second], [])
    assert await tasks.complete("a", first["lease_token"]) == "stale"
    assert await tasks.complete("a", second) == "completed"


async def new_session_takes_over_from_a_silent_one(tasks: TaskNamespace) -> None:
    await tasks.register("a", capacity=1)
    await tasks.submit()
    await tasks.claim("a", session="one")
    await tasks.client.zincrby(tasks.keys.sessions("a"), -61, "one")
    resumed, _, _ = await tasks.hands("a", "two")
    assert len(resumed) == 1


async def pause_of_all_servers_silences_no_session(tasks: TaskNamespace) -> None:
    client, keys = tasks.client, tasks.keys
    await tasks.register("a", capacity=1)
    task = await tasks.submit(lease=600)
    await tasks.claim("a", session="one")
    await client.zincrby(keys.sessions("a"), -100, "one")
    await client.hset(keys.counters, "team_at", float(await client.hget(keys.counters, "team_at")) - 100)
    assert await tasks.hands("a", "two") == ([], [], [task])


async def _let_pass(tasks: TaskNamespace, task: str, seconds: float) -> None:
    """Move the end of a lease back, as if time had passed."""
    ends = float(await tasks.field(task, "lease_until") or 0) - seconds
    await tasks.client.hset(tasks.keys.task(task), "lease_until", f"{ends:.6f}")
    await tasks.client.zadd(tasks.keys.leases, {task: f"{ends:.6f}"})


async def token_is_refused_from_another_agent(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit()
    await tasks.fail("b", await tasks.lease("b"))
    await tasks.sweep()
    token = await tasks.lease("a")
    assert await tasks.complete("b", token) == "stale"
    assert await tasks.complete("a", token) == "completed"


async def agent_that_never_held_a_task_learns_nothing_of_it(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit()
    token = await tasks.lease("a")
    assert await tasks.complete("b", token) == "unknown"
    assert await tasks.complete("b", f"{new_id()}.1.x") == "unknown"


async def ended_task_leaves_no_keys_behind(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(to=["a"], deadline=time.time() + 100)
    assert await tasks.complete("a", await tasks.lease("a")) == "completed"
    assert await tasks.held_counts("a") == EMPTY
    assert await tasks.client.zcard(tasks.keys.deadlines) == 0
    assert await tasks.client.hlen(tasks.keys.kinds) == 0
    for key in (tasks.keys.task(task), tasks.keys.history(task)):
        assert 0 < await tasks.client.ttl(key) <= KEEP
    assert await tasks.claim("a") == []


async def exhausted_attempts_end_in_the_dead_letters(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(retries=2)
    for attempt in (1, 2, 3):
        (lease,) = await tasks.claim("a")
        assert lease["attempt"] == attempt
        await tasks.fail("a", lease["lease_token"])
        await tasks.sweep()
    assert await tasks.state(task) == "dead"
    assert await tasks.client.xlen(tasks.keys.dead_tasks) == 1
    assert await tasks.claim("a") == []


async def failed_task_goes_to_another_agent(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit()
    await tasks.fail("a", await tasks.lease("a"))
    await tasks.sweep()
    assert await tasks.claim("a") == []
    assert await tasks.lease("b")


async def failed_task_is_not_assigned_to_the_agent_that_failed(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit()
    await tasks.fail("a", await tasks.lease("a"))
    await tasks.sweep()
    await tasks.assign(task, "a", "b")
    assert await tasks.field(task, "assigned") == "b"


async def failed_task_returns_when_no_other_agent_claims_it(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit(claim=AT_ONCE)
    await tasks.fail("a", await tasks.lease("a"))
    await tasks.sweep()
    assert await tasks.lease("a")


async def task_that_all_agents_failed_at_returns_to_the_last(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit()
    for name in ("a", "b"):
        await tasks.fail(name, await tasks.lease(name))
        await tasks.sweep()
    assert await tasks.lease("b")


async def requeued_task_is_offered_to_agents_that_failed(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(retries=1)
    for name in ("a", "b"):
        await tasks.fail(name, await tasks.lease(name))
        await tasks.sweep()
    assert (await tasks.requeue(task))["status"] == "pending"
    assert await tasks.lease("a")


async def failed_task_returns_to_the_only_agent(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.submit()
    await tasks.fail("a", await tasks.lease("a"))
    await tasks.sweep()
    assert await tasks.lease("a")


async def each_lease_has_its_own_token(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.submit(lease=AT_ONCE)
    first = await tasks.lease("a")
    second = await tasks.lease("a")
    assert first != second
    assert await tasks.complete("a", first) == "stale"


async def fencing_numbers_increase(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    for _ in range(4):
        await tasks.submit()
    tokens = [await tasks.lease(name) for name in "abab"]
    fences = [int(token.split(".")[1]) for token in tokens]
    assert fences == sorted(set(fences))


async def expired_lease_goes_to_another_agent(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(lease=AT_ONCE)
    await tasks.lease("a")
    await tasks.sweep()
    assert await tasks.state(task) == "pending"
    assert await tasks.held_counts("a") == EMPTY
    assert await tasks.lease("b")


async def lease_without_its_task_stops_no_sweep(tasks: TaskNamespace) -> None:
    await tasks.client.zadd(tasks.keys.leases, {new_id(): 1})
    await tasks.sweep()
    assert await tasks.client.zcard(tasks.keys.leases) == 0
    assert await tasks.client.xlen(tasks.keys.damaged) == 1


async def pause_of_all_servers_costs_no_lease(tasks: TaskNamespace) -> None:
    """All times are moved back, as if the last call was long ago."""
    client, keys = tasks.client, tasks.keys
    await tasks.register("a", "b")
    task, over = await tasks.submit(retries=0), await tasks.submit(retries=0)
    tokens = {leased["id"]: leased["lease_token"] for leased in await tasks.claim("a", 2)}
    for name, left in ((task, 30), (over, -30)):
        ends = await client.zscore(keys.leases, name) - 60 + left - 100
        await client.zadd(keys.leases, {name: ends})
        await client.hset(keys.task(name), "lease_until", ends)
    await client.hset(keys.counters, "team_at", float(await client.hget(keys.counters, "team_at")) - 100)
    await tasks.sweep()
    assert [await tasks.state(name) for name in (over, task)] == ["pending", "leased"]
    assert (await tasks.heartbeat("a", tokens[task]))["lost"] == []
    assert await tasks.complete("a", tokens[task]) == "completed"


async def leased_task_is_not_given_to_another(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit(to=["a"])
    await tasks.lease("a")
    assert await tasks.held_counts("a") == {"leases": 1, "unclaimed": 0, "held": 1, "inbox": 1}
    await tasks.sweep()
    assert await tasks.claim("b") == []
    assert await tasks.claim("a") == []


async def heartbeat_renews_a_lease(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(lease=50)
    token = await tasks.lease("a")
    before = await tasks.field(task, "lease_until")
    answer = await tasks.heartbeat("a", token)
    after = await tasks.field(task, "lease_until")
    assert answer["renewed"] == [[token, after]]
    assert float(after or 0) > float(before or 0)
    assert await tasks.client.zscore(tasks.keys.leases, task) == float(after or 0)


async def assigned_task_is_not_given_to_another(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(to=["a"])
    assert await tasks.field(task, "assigned") == "a"
    assert await tasks.claim("b") == []
    assert len(await tasks.claim("a", 5)) == 1


async def unclaimed_assignment_is_taken_back(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(to=["a"], claim=AT_ONCE)
    await tasks.sweep()
    assert await tasks.field(task, "assigned") is None
    assert await tasks.held_counts("a") == EMPTY
    assert await tasks.lease("b")


async def agent_gets_no_more_than_its_capacity(tasks: TaskNamespace) -> None:
    await tasks.register("a", capacity=2)
    for _ in range(4):
        await tasks.submit(to=["a"])
    assert await tasks.client.xlen(tasks.keys.inbox("a")) == 2
    assert len(await tasks.claim("a", 9)) == 2
    assert await tasks.claim("a", 9) == []


async def task_waits_for_all_its_dependencies(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    first, second = await tasks.submit(), await tasks.submit()
    last = await tasks.submit(after=[first, second])
    leases = await tasks.claim("a", 9)
    assert {lease["id"] for lease in leases} == {first, second}
    assert await tasks.complete("a", leases[0]["lease_token"]) == "completed"
    assert await tasks.state(last) == "waiting"
    assert await tasks.complete("a", leases[1]["lease_token"]) == "completed"
    assert await tasks.state(last) == "pending"
    assert await tasks.lease("a")


async def task_is_cancelled_when_a_dependency_dies(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    first = await tasks.submit()
    second = await tasks.submit(after=[first])
    third = await tasks.submit(after=[second])
    await tasks.fail("a", await tasks.lease("a"), retry=False)
    await tasks.sweep()
    assert [await tasks.state(task) for task in (first, second, third)] == ["dead", "cancelled", "cancelled"]


async def pinned_task_waits_for_its_agent_while_it_is_silent(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    await tasks.submit(only="a", to=["a"])
    assert await tasks.claim("b") == []
    await tasks.client.zadd(tasks.keys.agents, {"a": 1})
    assert (await tasks.declare_dead("a"))["taken"] == 1
    assert await tasks.claim("b") == []
    assert await tasks.lease("a")


async def pinned_task_ends_when_its_agent_leaves(tasks: TaskNamespace) -> None:
    await tasks.register("a", capacity=1)
    assigned, queued = await tasks.submit(only="a", to=["a"]), await tasks.submit(only="a", to=["a"])
    first = await tasks.submit()
    waiting = await tasks.submit(only="a", after=[first])
    await tasks.leave("a")
    await tasks.register("a", "b")
    assert await tasks.complete("b", await tasks.lease("b")) == "completed"
    for task in (assigned, queued, waiting):
        assert await tasks.state(task) == "dead"
        assert await tasks.field(task, "error") == "it is only for a, which was unregistered"
    assert await tasks.claim("a") == []
    assert (await tasks.requeue(queued))["status"] == "pending"
    assert await tasks.lease("a")


async def task_of_an_agent_that_left_is_not_requeued(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(only="a")
    await tasks.leave("a")
    assert (await tasks.requeue(task)) == {"status": "unknown_agent", "agent": "a"}
    assert await tasks.state(task) == "dead"


async def assigned_task_is_queued_when_its_agent_cannot_do_it_any_more(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b", able=["lua"])
    await tasks.submit(needs=["lua"], to=["a"])
    await tasks.register("a")
    assert await tasks.claim("a") == []
    assert await tasks.held_counts("a") == EMPTY
    assert await tasks.lease("b")


async def live_agent_keeps_its_lease(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.submit()
    token = await tasks.lease("a")
    assert (await tasks.declare_dead("a"))["status"] == "alive"
    assert await tasks.complete("a", token) == "completed"


async def requeued_task_has_all_its_attempts_again(tasks: TaskNamespace) -> None:
    await tasks.register("a", "b")
    task = await tasks.submit(retries=0)
    await tasks.fail("a", await tasks.lease("a"))
    assert await tasks.state(task) == "dead"
    assert (await tasks.requeue(task, by="b"))["status"] == "unknown"
    assert (await tasks.requeue(task))["status"] == "pending"
    assert await tasks.client.ttl(tasks.keys.task(task)) == -1
    assert await tasks.client.xlen(tasks.keys.dead_tasks) == 0
    (lease,) = await tasks.claim("a")
    assert lease["attempt"] == 1
    assert await tasks.complete("a", lease["lease_token"]) == "completed"


async def requeued_task_waits_for_its_dependencies_again(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    first = await tasks.submit()
    task = await tasks.submit(after=[first], deadline=time.time() + 0.02)
    await _until_dead(tasks, task)
    assert (await tasks.requeue(task))["status"] == "waiting"
    assert await tasks.complete("a", await tasks.lease("a")) == "completed"
    assert await tasks.state(task) == "pending"


async def namespace_task_quota_is_enforced(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    for _ in range(3):
        await tasks.submit(quota=1)
        assert (await tasks.try_to_submit(quota=1))["status"] == "quota"
        assert await tasks.complete("a", await tasks.lease("a")) == "completed"


async def repeated_call_has_one_effect_and_one_answer(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit(task_id="01m81x7vqc1t6cf4nvwt7v6ayj")
    assert (await tasks.try_to_submit(task_id=task))["status"] == "submitted"
    assert await tasks.client.hget(tasks.keys.counters, "open_tasks") == b"1"
    await tasks.submit()
    call = new_id()
    first = await tasks.claim("a", call=call)
    assert await tasks.claim("a", call=call) == first
    token = first[0]["lease_token"]
    assert [(await tasks.fail("a", token, call="x"))["status"] for _ in "12"] == ["retrying", "retrying"]
    await tasks.sweep()
    leases = {lease["id"]: lease["lease_token"] for lease in await tasks.claim("a", 9)}
    assert (await tasks.fail("a", token, call="x"))["status"] == "retrying"
    assert [await tasks.complete("a", leases[task], call="y") for _ in "12"] == ["completed", "completed"]
    assert await tasks.complete("a", leases[task], call="z") == "stale"
    assert await tasks.client.hget(tasks.keys.counters, "tasks_completed") == b"1"


async def idempotency_key_creates_one_task(tasks: TaskNamespace) -> None:
    first = await tasks.submit(key=("k", "payload"))
    assert await tasks.try_to_submit(key=("k", "payload")) == {"status": "replayed", "id": first}
    assert (await tasks.try_to_submit(key=("k", "other")))["status"] == "idempotency_conflict"
    assert await tasks.submit(by="another", key=("k", "payload")) != first


async def only_the_submitter_cancels_and_then_completion_fails(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit()
    token = await tasks.lease("a")
    assert await tasks.cancel(task, by="a") == "unknown"
    assert await tasks.cancel(task) == "cancelled"
    assert await tasks.complete("a", token) == "stale"
    assert await tasks.state(task) == "cancelled"
    assert await tasks.cancel(task) == "ended"
    assert await tasks.held_counts("a") == EMPTY


async def deadline_ends_a_task(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    assert (await tasks.try_to_submit(deadline=time.time() - 1))["status"] == "past_deadline"
    task = await tasks.submit(deadline=time.time() + 0.05)
    token = await tasks.lease("a")
    await _until_dead(tasks, task)
    assert await tasks.complete("a", token) == "stale"


async def _until_dead(tasks: TaskNamespace, task: str) -> None:
    async def dead() -> bool:
        await tasks.sweep()
        return await tasks.state(task) == "dead"

    await wait_until(dead, 1.0)


async def retry_delays_double(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task, pauses = await tasks.submit(), list[float]()
    for _ in range(3):
        token = await tasks.lease("a")
        at = float(await tasks.field(task, "leased_at") or 0)
        pauses.append(float((await tasks.fail("a", token, pause=100))["next_at"]) - at)
        assert await tasks.claim("a") == []
        await tasks.client.zadd(tasks.keys.delayed, {task: 1})
        await tasks.sweep()
    assert [round(pause / 100) for pause in pauses] == [1, 2, 4]


async def more_urgent_task_goes_first(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    order = [TaskPriority.LOW, TaskPriority.CRITICAL, TaskPriority.MEDIUM, TaskPriority.HIGH]
    for priority in order:
        await tasks.submit(priority=priority)
    leases = await tasks.claim("a", 9)
    taken = [await tasks.field(lease["id"], "priority") for lease in leases]
    assert taken == ["critical", "high", "medium", "low"]


async def submitters_take_turns(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    for _ in range(8):
        await tasks.submit(by="many")
    single = await tasks.submit(by="few")
    leases = await tasks.claim("a", 9)
    assert single in {lease["id"] for lease in leases[:2]}


async def new_submitter_starts_at_the_current_turn(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    old = [await tasks.submit(by="old") for _ in range(5)]
    for _ in range(3):
        await tasks.complete("a", await tasks.lease("a"))
    new = [await tasks.submit(by="new") for _ in range(2)]
    leases = await tasks.claim("a", 9)
    assert [lease["id"] for lease in leases] == [new[0], old[3], new[1], old[4]]


async def cancelled_tasks_use_no_turns(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    many = [await tasks.submit(by="many") for _ in range(9)]
    for task in many[:-1]:
        await tasks.cancel(task, by="many")
    others = [await tasks.submit(by="other") for _ in range(3)]
    assert [lease["id"] for lease in await tasks.claim("a", 9)] == [many[-1], *others]


async def turns_of_one_submitter_do_not_delay_a_new_one(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    await tasks.register("skilled", capacity=1)
    old = [await tasks.submit(by="old") for _ in range(5)]
    await tasks.submit(by="old", only="skilled", to=["skilled"])
    await tasks.client.hset(tasks.keys.agent("skilled"), "status", "draining")
    await tasks.lease("skilled")
    new = [await tasks.submit(by="new") for _ in range(2)]
    leases = await tasks.claim("a", 9)
    assert [lease["id"] for lease in leases[:4]] == [old[0], new[0], old[1], new[1]]


async def own_tasks_of_an_agent_use_no_turns(tasks: TaskNamespace) -> None:
    await tasks.register("a", able=["lua"])
    await tasks.register("old")
    for _ in range(4):
        await tasks.submit(by="old", needs=["lua"])
    for _ in range(4):
        await tasks.submit(by="old", only="old")
    assert len(await tasks.claim("old", 9)) == 4
    new = await tasks.submit(by="new", needs=["lua"])
    assert new in [lease["id"] for lease in await tasks.claim("a", 2)]


async def requeued_task_gets_a_new_turn(tasks: TaskNamespace) -> None:
    await tasks.register("a", capacity=100)
    task = await tasks.submit(by="lead", retries=0)
    await tasks.fail("a", await tasks.lease("a"))
    for _ in range(3):
        await tasks.submit(by="busy")
        await tasks.lease("a")
    waiting = await tasks.submit(by="waiting")
    await tasks.requeue(task)
    first, second = [float(await tasks.field(name, "score") or 0) for name in (waiting, task)]
    assert second >= first > 0


async def cancelled_task_leaves_its_queue(tasks: TaskNamespace) -> None:
    task = await tasks.submit()
    assert await tasks.cancel(task) == "cancelled"
    assert await tasks.client.hlen(tasks.keys.kinds) == 0
    await tasks.register("a")
    assert await tasks.claim("a") == []


async def failed_task_does_not_wait_for_incapable_agents(tasks: TaskNamespace) -> None:
    await tasks.register("a", able=["lua"])
    await tasks.register("b")
    await tasks.submit(needs=["lua"])
    await tasks.fail("a", await tasks.lease("a"))
    await tasks.sweep()
    assert await tasks.lease("a")


async def long_history_keeps_the_newest_entries(tasks: TaskNamespace) -> None:
    await tasks.register("a")
    task = await tasks.submit()
    history, old = tasks.keys.history(task), pack({"op": "old"})
    await tasks.client.rpush(history, *[old] * 300)
    await tasks.complete("a", await tasks.lease("a"))
    kept = await tasks.client.lrange(history, 0, -1)
    assert len(kept) == 200
    assert [unpack(entry)["op"] for entry in kept[-3:]] == ["old", "leased", "completed"]


async def only_capable_agents_get_a_task(tasks: TaskNamespace) -> None:
    await tasks.register("plain")
    await tasks.register("skilled", able=["lua", "sql"], window=1000)
    for demand in ({"needs": ["lua"]}, {"needs": ["lua", "sql"]}, {"window": 1000}, {"only": "skilled"}):
        await tasks.submit(to=["plain"], **demand)
        assert await tasks.claim("plain") == []
        assert await tasks.lease("skilled")
