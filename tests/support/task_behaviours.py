"""What tasks must do, one behaviour each, told in calls of the Functions alone: what every mutation must break."""

from __future__ import annotations

import time

from memory_core.records.codec import pack, unpack
from memory_core.records.ids import new_id
from memory_core.records.task import TaskPriority
from support.embedder_fixtures import wait_until
from support.task_functions import AT_ONCE, KEEP, Ground

EMPTY = {"leases": 0, "unclaimed": 0, "held": 0, "inbox": 0}


async def a_wrong_token_is_refused(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    token = await ground.lease("a")
    head, fence, _ = token.split(".")
    assert await ground.complete("a", f"{head}.{fence}.guess") == "stale"
    assert (await ground.fail("a", f"{head}.{fence}.guess"))["status"] == "stale"
    assert (await ground.beat("a", f"{head}.{fence}.guess"))["lost"] == [f"{head}.{fence}.guess"]
    assert await ground.complete("a", token) == "completed"


async def a_token_dies_with_its_attempt(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    token = await ground.lease("a")
    await ground.fail("a", token)
    await ground.sweep()
    await ground.assign(task, "a")
    assert await ground.field(task, "assigned") == "a"
    assert await ground.complete("a", token) == "stale"
    assert (await ground.beat("a", token))["lost"] == [token]


async def a_token_dies_with_its_time(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit(lease=AT_ONCE)
    token = await ground.lease("a")
    assert await ground.complete("a", token) == "stale"
    assert (await ground.beat("a", token))["lost"] == [token]


async def a_token_is_worth_nothing_in_other_hands(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    await ground.fail("b", await ground.lease("b"))
    await ground.sweep()
    token = await ground.lease("a")
    assert await ground.complete("b", token) == "stale"
    assert await ground.complete("a", token) == "completed"


async def whoever_never_had_a_task_learns_nothing_of_it(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    token = await ground.lease("a")
    assert await ground.complete("b", token) == "unknown"
    assert await ground.complete("b", f"{new_id()}.1.x") == "unknown"


async def an_ended_task_leaves_nothing_behind(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(to=["a"], deadline=time.time() + 100)
    assert await ground.complete("a", await ground.lease("a")) == "completed"
    assert await ground.in_hand("a") == EMPTY
    assert await ground.client.zcard(ground.keys.deadlines) == 0
    assert await ground.client.hlen(ground.keys.kinds) == 0
    for key in (ground.keys.task(task), ground.keys.history(task)):
        assert 0 < await ground.client.ttl(key) <= KEEP
    assert await ground.claim("a") == []


async def attempts_are_counted_and_end_in_the_dead_letters(ground: Ground) -> None:
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


async def a_failed_task_goes_to_another(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit()
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.claim("a") == []
    assert await ground.lease("b")


async def a_failed_task_comes_back_if_there_is_nobody_else(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.lease("a")


async def each_lease_has_a_token_of_its_own(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit(lease=AT_ONCE)
    first = await ground.lease("a")
    second = await ground.lease("a")
    assert first != second
    assert await ground.complete("a", first) == "stale"


async def the_numbers_of_tokens_rise(ground: Ground) -> None:
    await ground.register("a", "b")
    for _ in range(4):
        await ground.submit()
    tokens = [await ground.lease(name) for name in "abab"]
    fences = [int(token.split(".")[1]) for token in tokens]
    assert fences == sorted(set(fences))


async def a_lease_that_ran_out_goes_to_another(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(lease=AT_ONCE)
    await ground.lease("a")
    await ground.sweep()
    assert await ground.state(task) == "pending"
    assert await ground.in_hand("a") == EMPTY
    assert await ground.lease("b")


async def a_lease_is_nobody_elses(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit(to=["a"])
    await ground.lease("a")
    assert await ground.in_hand("a") == {"leases": 1, "unclaimed": 0, "held": 1, "inbox": 1}
    await ground.sweep()
    assert await ground.claim("b") == []
    assert await ground.claim("a") == []


async def a_heartbeat_renews_a_lease(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit(lease=50)
    token = await ground.lease("a")
    before = await ground.field(task, "lease_until")
    answer = await ground.beat("a", token)
    after = await ground.field(task, "lease_until")
    assert answer["renewed"] == [[token, after]]
    assert float(after or 0) > float(before or 0)
    assert await ground.client.zscore(ground.keys.leases, task) == float(after or 0)


async def an_assigned_task_is_nobody_elses(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(to=["a"])
    assert await ground.field(task, "assigned") == "a"
    assert await ground.claim("b") == []
    assert len(await ground.claim("a", 5)) == 1


async def an_assignment_that_is_not_claimed_is_taken_back(ground: Ground) -> None:
    await ground.register("a", "b")
    task = await ground.submit(to=["a"], claim=AT_ONCE)
    await ground.sweep()
    assert await ground.field(task, "assigned") is None
    assert await ground.in_hand("a") == EMPTY
    assert await ground.lease("b")


async def an_agent_has_no_more_than_it_can_do(ground: Ground) -> None:
    await ground.register("a", most=2)
    for _ in range(4):
        await ground.submit(to=["a"])
    assert await ground.client.xlen(ground.keys.inbox("a")) == 2
    assert len(await ground.claim("a", 9)) == 2
    assert await ground.claim("a", 9) == []


async def a_task_waits_for_all_that_it_depends_on(ground: Ground) -> None:
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


async def a_task_ends_with_what_it_depends_on(ground: Ground) -> None:
    await ground.register("a")
    first = await ground.submit()
    second = await ground.submit(after=[first])
    third = await ground.submit(after=[second])
    await ground.fail("a", await ground.lease("a"), retry=False)
    await ground.sweep()
    assert [await ground.state(task) for task in (first, second, third)] == ["dead", "cancelled", "cancelled"]


async def a_task_for_one_agent_goes_to_others_when_that_one_dies(ground: Ground) -> None:
    await ground.register("a", "b")
    await ground.submit(only="a", to=["a"])
    assert await ground.claim("b") == []
    await ground.client.zadd(ground.keys.agents, {"a": 1})
    assert (await ground.lost("a"))["taken"] == 1
    assert await ground.lease("b")


async def a_living_agent_keeps_its_lease(ground: Ground) -> None:
    await ground.register("a")
    await ground.submit()
    token = await ground.lease("a")
    assert (await ground.lost("a"))["status"] == "alive"
    assert await ground.complete("a", token) == "completed"


async def a_requeued_task_has_all_its_attempts_and_no_past(ground: Ground) -> None:
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


async def a_requeued_task_waits_again_for_what_it_depends_on(ground: Ground) -> None:
    await ground.register("a")
    first = await ground.submit()
    task = await ground.submit(after=[first], deadline=time.time() + 0.02)
    await _until_dead(ground, task)
    assert (await ground.requeue(task))["status"] == "waiting"
    assert await ground.complete("a", await ground.lease("a")) == "completed"
    assert await ground.state(task) == "pending"


async def the_namespace_has_a_quota(ground: Ground) -> None:
    await ground.register("a")
    for _ in range(3):
        await ground.submit(quota=1)
        assert (await ground.try_to_submit(quota=1))["status"] == "quota"
        assert await ground.complete("a", await ground.lease("a")) == "completed"


async def a_repeated_call_has_one_effect_and_one_answer(ground: Ground) -> None:
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


async def an_idempotency_key_stands_for_one_task(ground: Ground) -> None:
    first = await ground.submit(key=("k", "payload"))
    assert await ground.try_to_submit(key=("k", "payload")) == {"status": "replayed", "id": first}
    assert (await ground.try_to_submit(key=("k", "other")))["status"] == "idempotency_conflict"
    assert await ground.submit(by="another", key=("k", "payload")) != first


async def only_its_submitter_cancels_a_task_and_nobody_completes_it_then(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    token = await ground.lease("a")
    assert await ground.cancel(task, by="a") == "unknown"
    assert await ground.cancel(task) == "cancelled"
    assert await ground.complete("a", token) == "stale"
    assert await ground.state(task) == "cancelled"
    assert await ground.cancel(task) == "ended"
    assert await ground.in_hand("a") == EMPTY


async def a_deadline_ends_a_task(ground: Ground) -> None:
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


async def pauses_between_attempts_double(ground: Ground) -> None:
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


async def the_more_urgent_goes_first(ground: Ground) -> None:
    await ground.register("a")
    order = [TaskPriority.LOW, TaskPriority.CRITICAL, TaskPriority.MEDIUM, TaskPriority.HIGH]
    for priority in order:
        await ground.submit(priority=priority)
    leases = await ground.claim("a", 9)
    taken = [await ground.field(lease["id"], "priority") for lease in leases]
    assert taken == ["critical", "high", "medium", "low"]


async def many_tasks_of_one_delay_anothers_by_one_turn(ground: Ground) -> None:
    await ground.register("a")
    for _ in range(8):
        await ground.submit(by="many")
    single = await ground.submit(by="few")
    leases = await ground.claim("a", 9)
    assert single in {lease["id"] for lease in leases[:2]}


async def a_newcomers_tasks_begin_at_the_turn_that_was_reached(ground: Ground) -> None:
    await ground.register("a")
    old = [await ground.submit(by="old") for _ in range(5)]
    for _ in range(3):
        await ground.complete("a", await ground.lease("a"))
    new = [await ground.submit(by="new") for _ in range(2)]
    leases = await ground.claim("a", 9)
    assert [lease["id"] for lease in leases] == [new[0], old[3], new[1], old[4]]


async def a_task_that_ends_in_its_queue_leaves_it(ground: Ground) -> None:
    task = await ground.submit()
    assert await ground.cancel(task) == "cancelled"
    assert await ground.client.hlen(ground.keys.kinds) == 0
    await ground.register("a")
    assert await ground.claim("a") == []


async def whoever_failed_waits_for_nobody_that_is_not_able(ground: Ground) -> None:
    await ground.register("a", able=["lua"])
    await ground.register("b")
    await ground.submit(needs=["lua"])
    await ground.fail("a", await ground.lease("a"))
    await ground.sweep()
    assert await ground.lease("a")


async def a_long_history_keeps_what_came_last(ground: Ground) -> None:
    await ground.register("a")
    task = await ground.submit()
    history, old = ground.keys.history(task), pack({"op": "old"})
    await ground.client.rpush(history, *[old] * 300)
    await ground.complete("a", await ground.lease("a"))
    kept = await ground.client.lrange(history, 0, -1)
    assert len(kept) == 200
    assert [unpack(entry)["op"] for entry in kept[-3:]] == ["old", "leased", "completed"]


async def only_the_able_get_a_task(ground: Ground) -> None:
    await ground.register("plain")
    await ground.register("skilled", able=["lua", "sql"], window=1000)
    for demand in ({"needs": ["lua"]}, {"needs": ["lua", "sql"]}, {"window": 1000}, {"only": "skilled"}):
        await ground.submit(to=["plain"], **demand)
        assert await ground.claim("plain") == []
        assert await ground.lease("skilled")
