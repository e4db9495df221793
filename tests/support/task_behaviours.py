"""Required behaviour of tasks, through calls of the Functions only. Every mutation must break one of these."""

from __future__ import annotations

import time

from memory_core.records.codec import pack, unpack
from memory_core.records.ids import new_id
from memory_core.records.task import TaskPriority
from support.embedder_fixtures import wait_until
from support.task_functions import AT_ONCE, KEEP, Ground

EMPTY = {"leases": 0, "unclaimed": 0, "held": 0, "inbox": 0}


async def wrong_token_is_refused(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    token = await ground.lease("a")
    head, fence, _ = token.split(".")
    assert await ground.complete("a", f"{head}.{fence}.guess") == "stale"
    assert (await ground.fail("a", f"{head}.{fence}.guess"))["status"] == "stale"
    assert (await ground.beat("a", f"{head}.{fence}.guess"))["lost"] == [f"{head}.{fence}.guess"]
    assert await ground.complete("a", token) == "completed"


async def token_ends_with_its_attempt(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    token = await ground.lease("a")
    await ground.fail("a", token)
    await ground.sweep()
    await ground.assign(task, "a")
    assert await ground.field(task, "assigned") == "a"
    assert await ground.complete("a", token) == "stale"
    assert (await ground.beat("a", token))["lost"] == [token]


async def token_ends_with_its_lease(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit(lease=AT_ONCE)
    token = await ground.lease("a")
    assert await ground.complete("a", token) == "stale"
    assert (await ground.beat("a", token))["lost"] == [token]


async def token_is_refused_from_another_agent(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    await ground.fail("b", await ground.lease("b"))
    await ground.sweep()
    token = await ground.lease("a")
    assert await ground.complete("b", token) == "stale"
    assert await ground.complete("a", token) == "completed"


async def agent_that_never_held_a_task_learns_nothing_of_it(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    token = await ground.lease("a")
    assert await ground.complete("b", token) == "unknown"
    assert await ground.complete("b", f"{new_id()}.1.x") == "unknown"


async def ended_task_leaves_no_keys_behind(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(to=["a"], deadline=time.time() + 100)
    assert await ground.complete("a", await ground.lease("a")) == "completed"
    assert await ground.in_hand("a") == EMPTY
    assert await ground.client.zcard(ground.keys.deadlines) == 0
    assert await ground.client.hlen(ground.keys.kinds) == 0
    for key in (ground.keys.task(task), ground.keys.history(task)):
        assert 0 < await ground.client.ttl(key) <= KEEP
    assert await ground.claim("a") == []


async def exhausted_attempts_end_in_the_dead_letters(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(retries=2)
    for attempt in (1, 2, 3):
        (lease,) = await ground.claim("a")
        assert lease["attempt"] == attempt
        await ground.fail("a", lease["lease_token"])
        await ground.sweep()
    assert await ground.state(task) == "dead"
    assert await ground.client.xlen(ground.keys.dead_tasks) == 1
    assert await ground.claim("a") == []


async def failed_task_goes_to_another_agent(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.claim("a") == []
    assert await ground.lease("b")


async def failed_task_returns_to_the_only_agent(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.lease("a")


async def each_lease_has_its_own_token(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit(lease=AT_ONCE)
    first = await ground.lease("a")
    second = await ground.lease("a")
    assert first != second
    assert await ground.complete("a", first) == "stale"


async def fencing_numbers_increase(ground: Ground) -> None:
    await ground.register("a", "b")
    for _ in range(4):
        await ground.submit()
    tokens = [await ground.lease(name) for name in "abab"]
    fences = [int(token.split(".")[1]) for token in tokens]
    assert fences == sorted(set(fences))


async def expired_lease_goes_to_another_agent(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(lease=AT_ONCE)
    await ground.lease("a")
    await ground.sweep()
    assert await ground.state(task) == "pending"
    assert await ground.in_hand("a") == EMPTY
    assert await ground.lease("b")


async def leased_task_is_not_given_to_another(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit(to=["a"])
    await ground.lease("a")
    assert await ground.in_hand("a") == {"leases": 1, "unclaimed": 0, "held": 1, "inbox": 1}
    await ground.sweep()
    assert await ground.claim("b") == []
    assert await ground.claim("a") == []


async def heartbeat_renews_a_lease(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(lease=50)
    token = await ground.lease("a")
    before = await ground.field(task, "lease_until")
    answer = await ground.beat("a", token)
    after = await ground.field(task, "lease_until")
    assert answer["renewed"] == [[token, after]]
    assert float(after or 0) > float(before or 0)
    assert await ground.client.zscore(ground.keys.leases, task) == float(after or 0)


async def assigned_task_is_not_given_to_another(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(to=["a"])
    assert await ground.field(task, "assigned") == "a"
    assert await ground.claim("b") == []
    assert len(await ground.claim("a", 5)) == 1


async def unclaimed_assignment_is_taken_back(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(to=["a"], claim=AT_ONCE)
    await ground.sweep()
    assert await ground.field(task, "assigned") is None
    assert await ground.in_hand("a") == EMPTY
    assert await ground.lease("b")


async def agent_gets_no_more_than_its_capacity(ground: Ground) -> None:
    await ground.register("a", most=2)
    for _ in range(4):
        await ground.submit(to=["a"])
    assert await ground.client.xlen(ground.keys.inbox("a")) == 2
    assert len(await ground.claim("a", 9)) == 2
    assert await ground.claim("a", 9) == []


async def task_waits_for_all_its_dependencies(ground: Ground) -> None:
    await ground.register("a")
    first, second = await ground.submit(), await ground.submit()
    last = await ground.submit(after=[first, second])
    leases = await ground.claim("a", 9)
    assert {lease["id"] for lease in leases} == {first, second}
    assert await ground.complete("a", leases[0]["lease_token"]) == "completed"
    assert await ground.state(last) == "waiting"
    assert await ground.complete("a", leases[1]["lease_token"]) == "completed"
    assert await ground.state(last) == "pending"
    assert await ground.lease("a")


async def task_is_cancelled_when_a_dependency_dies(ground: Ground) -> None:
    await ground.register("a")
    first = await ground.submit()
    second = await ground.submit(after=[first])
    third = await ground.submit(after=[second])
    await ground.fail("a", await ground.lease("a"), retry=False)
    await ground.sweep()
    assert [await ground.state(task) for task in (first, second, third)] == ["dead", "cancelled", "cancelled"]


async def pinned_task_goes_to_others_when_its_agent_dies(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit(only="a", to=["a"])
    assert await ground.claim("b") == []
    await ground.client.zadd(ground.keys.agents, {"a": 1})
    assert (await ground.lost("a"))["taken"] == 1
    assert await ground.lease("b")


async def live_agent_keeps_its_lease(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    token = await ground.lease("a")
    assert (await ground.lost("a"))["status"] == "alive"
    assert await ground.complete("a", token) == "completed"


async def requeued_task_has_all_its_attempts_again(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(retries=0)
    await ground.fail("a", await ground.lease("a"))
    assert await ground.state(task) == "dead"
    assert (await ground.requeue(task, by="b"))["status"] == "unknown"
    assert (await ground.requeue(task))["status"] == "pending"
    assert await ground.client.ttl(ground.keys.task(task)) == -1
    assert await ground.client.xlen(ground.keys.dead_tasks) == 0
    (lease,) = await ground.claim("a")
    assert lease["attempt"] == 1
    assert await ground.complete("a", lease["lease_token"]) == "completed"


async def requeued_task_waits_for_its_dependencies_again(ground: Ground) -> None:
    await ground.register("a")
    first = await ground.submit()
    task = await ground.submit(after=[first], deadline=time.time() + 0.02)
    await _until_dead(ground, task)
    assert (await ground.requeue(task))["status"] == "waiting"
    assert await ground.complete("a", await ground.lease("a")) == "completed"
    assert await ground.state(task) == "pending"


async def namespace_task_quota_is_enforced(ground: Ground) -> None:
    await ground.register("a")
    for _ in range(3):
        await ground.submit(quota=1)
        assert (await ground.try_to_submit(quota=1))["status"] == "quota"
        assert await ground.complete("a", await ground.lease("a")) == "completed"


async def repeated_call_has_one_effect_and_one_answer(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(task_id="01m81x7vqc1t6cf4nvwt7v6ayj")
    assert (await ground.try_to_submit(task_id=task))["status"] == "submitted"
    assert await ground.client.hget(ground.keys.counters, "open_tasks") == b"1"
    await ground.submit()
    call = new_id()
    first = await ground.claim("a", call=call)
    assert await ground.claim("a", call=call) == first
    token = first[0]["lease_token"]
    assert [(await ground.fail("a", token, call="x"))["status"] for _ in "12"] == ["retrying", "retrying"]
    await ground.sweep()
    leases = {lease["id"]: lease["lease_token"] for lease in await ground.claim("a", 9)}
    assert (await ground.fail("a", token, call="x"))["status"] == "retrying"
    assert [await ground.complete("a", leases[task], call="y") for _ in "12"] == ["completed", "completed"]
    assert await ground.complete("a", leases[task], call="z") == "stale"
    assert await ground.client.hget(ground.keys.counters, "tasks_completed") == b"1"


async def idempotency_key_creates_one_task(ground: Ground) -> None:
    first = await ground.submit(key=("k", "payload"))
    assert await ground.try_to_submit(key=("k", "payload")) == {"status": "replayed", "id": first}
    assert (await ground.try_to_submit(key=("k", "other")))["status"] == "idempotency_conflict"
    assert await ground.submit(by="another", key=("k", "payload")) != first


async def only_the_submitter_cancels_and_then_completion_fails(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    token = await ground.lease("a")
    assert await ground.cancel(task, by="a") == "unknown"
    assert await ground.cancel(task) == "cancelled"
    assert await ground.complete("a", token) == "stale"
    assert await ground.state(task) == "cancelled"
    assert await ground.cancel(task) == "ended"
    assert await ground.in_hand("a") == EMPTY


async def deadline_ends_a_task(ground: Ground) -> None:
    await ground.register("a")
    assert (await ground.try_to_submit(deadline=time.time() - 1))["status"] == "past_deadline"
    task = await ground.submit(deadline=time.time() + 0.05)
    token = await ground.lease("a")
    await _until_dead(ground, task)
    assert await ground.complete("a", token) == "stale"


async def _until_dead(ground: Ground, task: str) -> None:
    async def dead() -> bool:
        await ground.sweep()
        return await ground.state(task) == "dead"

    await wait_until(dead, 1.0)


async def retry_delays_double(ground: Ground) -> None:
    await ground.register("a")
    task, pauses = await ground.submit(), list[float]()
    for _ in range(3):
        token = await ground.lease("a")
        at = float(await ground.field(task, "leased_at") or 0)
        pauses.append(float((await ground.fail("a", token, pause=100))["next_at"]) - at)
        assert await ground.claim("a") == []
        await ground.client.zadd(ground.keys.delayed, {task: 1})
        await ground.sweep()
    assert [round(pause / 100) for pause in pauses] == [1, 2, 4]


async def more_urgent_task_goes_first(ground: Ground) -> None:
    await ground.register("a")
    order = [TaskPriority.LOW, TaskPriority.CRITICAL, TaskPriority.MEDIUM, TaskPriority.HIGH]
    for priority in order:
        await ground.submit(priority=priority)
    leases = await ground.claim("a", 9)
    taken = [await ground.field(lease["id"], "priority") for lease in leases]
    assert taken == ["critical", "high", "medium", "low"]


async def submitters_take_turns(ground: Ground) -> None:
    await ground.register("a")
    for _ in range(8):
        await ground.submit(by="many")
    single = await ground.submit(by="few")
    leases = await ground.claim("a", 9)
    assert single in {lease["id"] for lease in leases[:2]}


async def new_submitter_starts_at_the_current_turn(ground: Ground) -> None:
    await ground.register("a")
    old = [await ground.submit(by="old") for _ in range(5)]
    for _ in range(3):
        await ground.complete("a", await ground.lease("a"))
    new = [await ground.submit(by="new") for _ in range(2)]
    leases = await ground.claim("a", 9)
    assert [lease["id"] for lease in leases] == [new[0], old[3], new[1], old[4]]


async def cancelled_task_leaves_its_queue(ground: Ground) -> None:
    task = await ground.submit()
    assert await ground.cancel(task) == "cancelled"
    assert await ground.client.hlen(ground.keys.kinds) == 0
    await ground.register("a")
    assert await ground.claim("a") == []


async def failed_task_does_not_wait_for_incapable_agents(ground: Ground) -> None:
    await ground.register("a", able=["lua"])
    await ground.register("b")
    await ground.submit(needs=["lua"])
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.lease("a")


async def long_history_keeps_the_newest_entries(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    history, old = ground.keys.history(task), pack({"op": "old"})
    await ground.client.rpush(history, *[old] * 300)
    await ground.complete("a", await ground.lease("a"))
    kept = await ground.client.lrange(history, 0, -1)
    assert len(kept) == 200
    assert [unpack(entry)["op"] for entry in kept[-3:]] == ["old", "leased", "completed"]


async def only_capable_agents_get_a_task(ground: Ground) -> None:
    await ground.register("plain")
    await ground.register("skilled", able=["lua", "sql"], window=1000)
    for demand in ({"needs": ["lua"]}, {"needs": ["lua", "sql"]}, {"window": 1000}, {"only": "skilled"}):
        await ground.submit(to=["plain"], **demand)
        assert await ground.claim("plain") == []
        assert await ground.lease("skilled")
