"""Every rule of the task Functions is needed: without any one of them, at least one behaviour breaks."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from itertools import count

import pytest
from redis.exceptions import ResponseError
from support import task_behaviours
from support.embedder_fixtures import RedisServer
from support.task_functions import TaskNamespace

from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_core.store.functions import library_code

Behaviour = Callable[[TaskNamespace], Awaitable[None]]
BEHAVIOURS: dict[str, Behaviour] = {
    name: behaviour
    for name, behaviour in inspect.getmembers(task_behaviours, inspect.iscoroutinefunction)
    if behaviour.__module__ == task_behaviours.__name__ and not name.startswith("_")
}
_numbers = count()

_RENEWS = """local _ = (function()
      redis.call('HSET', names.task .. id, 'lease_until', rm.seconds(now + 60000000))
      redis.call('ZADD', names.leases, rm.seconds(now + 60000000), id)
    end)(names, id, task, now, {op = 'expired'"""
_DROPS = "  drop_entry(names, task.assigned, task.entry)\n"
_SETTLES = "  redis.call('SREM', names.blockers .. id, ended)\n"
_LAST_OF_SETTLING = (
    "    rm.add_history(names, id, now, {op = 'unblocked'})\n    rm.make_pending(names, id, task, now, keep)\n  end\n"
)

MUTATIONS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    # checks
    "no token check": ("wrong_token_is_refused", [("task.lease_token == token and ", "")]),
    "no state check": ("token_ends_with_its_attempt", [("and task.state == 'leased' ", "")]),
    "no check of lease expiry": (
        "token_ends_with_its_lease",
        [("\n    and tonumber(task.lease_until) * 1000000 > now", "")],
    ),
    "no holder check": (
        "token_is_refused_from_another_agent",
        [(" and task.assigned == agent", "")],
    ),
    "no check of earlier holders": (
        "agent_that_never_held_a_task_learns_nothing_of_it",
        [("  if not rm.contains(rm.split(task.holders), request.agent) then return 'unknown' end\n", "")],
    ),
    "agents that failed are not avoided": (
        "failed_task_goes_to_another_agent",
        [("  if another then rm.avoid(names, id, task, name, now, due) end\n", "")],
    ),
    "agents that failed are avoided forever": (
        "failed_task_returns_to_the_only_agent",
        [("  return #team.names == COMPARED_MOST\n", "  return true\n")],
    ),
    "tasks are assigned to agents that failed": (
        "failed_task_is_not_assigned_to_the_agent_that_failed",
        [("  return ends and tonumber(ends) * 1000000 > now\n", "  return false\n")],
    ),
    "an agent avoids a task until it ends": (
        "failed_task_returns_when_no_other_agent_claims_it",
        [("  redis.call('ZREMRANGEBYSCORE', names.avoided .. name, '-inf', rm.seconds(now))\n", "")],
    ),
    "a requeued task is avoided": (
        "requeued_task_is_offered_to_agents_that_failed",
        [("do redis.call('ZREM', names.avoided .. name, id) end", "do local _ = name end")],
    ),
    "an agent leases what it cannot do any more": (
        "assigned_task_is_queued_when_its_agent_cannot_do_it_any_more",
        [("  if not rm.is_able(agent, rm.read_kind(task.kind_spec)) then\n", "  if false then\n")],
    ),
    "pinned tasks outlive their agent": (
        "pinned_task_ends_when_its_agent_leaves",
        [("  if lost then\n", "  if false then\n")],
    ),
    "pinned tasks go to the next holder of a name": (
        "pinned_task_ends_when_its_agent_leaves",
        [
            (
                "'registered_at') == 0\n    or rm.is_before_holder(",
                "'registered_at') == 0\n    or rm.contains({}, ",
            )
        ],
    ),
    "a requeued task keeps its former agent": (
        "pinned_task_ends_when_its_agent_leaves",
        [(", 'requeued_at', rm.seconds(now))", ")")],
    ),
    "no check of the agent of a requeued task": (
        "task_of_an_agent_that_left_is_not_requeued",
        [
            (
                "  if only ~= '' and not rm.load_agent(names, only) then return {status = 'unknown_agent', agent",
                "  if false then return {status = 'unknown_agent', agent",
            )
        ],
    ),
    "pinned tasks go to others": (
        "pinned_task_waits_for_its_agent_while_it_is_silent",
        [
            (
                "  if kind.only ~= '' and kind.only ~= agent.name then return false end\n  return rm.has_skills",
                "  return rm.has_skills",
            )
        ],
    ),
    "no check for silent agents": (
        "live_agent_keeps_its_lease",
        [
            (
                "if deadline > 0 and deadline * 1000000 > now then return {status = 'alive'",
                "if false then return {status = 'alive'",
            )
        ],
    ),
    "no check of the canceller": (
        "only_the_submitter_cancels_and_then_completion_fails",
        [
            (
                "  if not may_manage(names, task, request) then return {status = 'unknown'} end\n  if rm.contains(",
                "  if not task.state then return {status = 'unknown'} end\n  if rm.contains(",
            )
        ],
    ),
    "no check of the requeuer": (
        "requeued_task_has_all_its_attempts_again",
        [
            (
                "  if not may_manage(names, task, request) then return {status = 'unknown'} end\n"
                "  if task.state ~= 'dead'",
                "  if not task.state then return {status = 'unknown'} end\n  if task.state ~= 'dead'",
            )
        ],
    ),
    "no quota": ("namespace_task_quota_is_enforced", [(">= request.quota then", "< 0 then")]),
    "no check of capabilities": (
        "only_capable_agents_get_a_task",
        [("    if not string.find(agent.has, rm.searchable(capability), 1, true) then return false end\n", "")],
    ),
    "no check of the context window": (
        "only_capable_agents_get_a_task",
        [("  if agent.window < kind.window then return false end\n", "")],
    ),
    "no check of the assigned agent": (
        "only_capable_agents_get_a_task",
        [("  if kind.only ~= '' and kind.only ~= agent.name then return false end\n", "")],
    ),
    "no limit on leased tasks": (
        "agent_gets_no_more_than_its_capacity",
        [("math.min(#secrets, agent.most - held)", "#secrets")],
    ),
    "no limit on assigned tasks": (
        "agent_gets_no_more_than_its_capacity",
        [("  return redis.call('XLEN', names.inbox .. agent.name) < agent.most\n", "  return true\n")],
    ),
    "no payload check for a repeated idempotency key": (
        "idempotency_key_creates_one_task",
        [("  if seen.payload ~= idempotency.payload then return {status = 'idempotency_conflict'} end\n", "")],
    ),
    "no check of past deadlines": (
        "deadline_ends_a_task",
        [("  if is_past(request.deadline, now) then return {status = 'past_deadline'} end\n", "")],
    ),
    "a stale token renews": (
        "token_ends_with_its_lease",
        [("  if not rm.holds_lease(task, agent, token, now) then return nil end\n", "")],
    ),
    "repeated submissions not recognised": (
        "repeated_call_has_one_effect_and_one_answer",
        [
            (
                "  if known.state then return {status = 'submitted'",
                "  if false then return {status = 'submitted'",
            )
        ],
    ),
    "repeated claims not recognised": (
        "repeated_call_has_one_effect_and_one_answer",
        [("if agent.last_claim == request.call then", "if false then")],
    ),
    "repeated ends not recognised": (
        "repeated_call_has_one_effect_and_one_answer",
        [("  if not task.state or task.last_call ~= request.call then return false end\n", "  do return false end\n")],
    ),
    "exhausted retries do not end a task": (
        "exhausted_attempts_end_in_the_dead_letters",
        [("not how.retry or tonumber(task.attempt) > tonumber(task.max_retries)", "not how.retry")],
    ),
    "a failed dependency counts as completed": (
        "task_is_cancelled_when_a_dependency_dies",
        [
            (
                "    local completed = redis.call('HGET', names.task .. ended, 'state') == 'completed'\n",
                "    local completed = true\n",
            )
        ],
    ),
    # writes
    "completion keeps the lease": (
        "ended_task_leaves_no_keys_behind",
        [("  unassign(names, id, task)\n  if not task.assigned", "  if not task.assigned")],
    ),
    "the lease index keeps the lease": (
        "ended_task_leaves_no_keys_behind",
        [("task.state == 'leased' and names.leases or names.unclaimed", "names.unclaimed")],
    ),
    "the agent still holds the task": (
        "ended_task_leaves_no_keys_behind",
        [(_DROPS + "  redis.call('SREM', names.held .. task.assigned, id)\n", _DROPS)],
    ),
    "ended tasks never expire": (
        "ended_task_leaves_no_keys_behind",
        [("redis.call('EXPIRE', key .. id, keep)", "local _ = keep")],
    ),
    "attempts are not counted": (
        "exhausted_attempts_end_in_the_dead_letters",
        [("local attempt = tonumber(task.attempt) + 1", "local attempt = tonumber(task.attempt)")],
    ),
    "dead tasks are not added to the dead letters": (
        "exhausted_attempts_end_in_the_dead_letters",
        [
            (
                "redis.call('XADD', names.dead_tasks, '*', 'task', id, 'error', reason, 'attempts', task.attempt or 0)",
                "'0-1'",
            )
        ],
    ),
    "agents that failed are forgotten": (
        "task_that_all_agents_failed_at_returns_to_the_last",
        [("  redis.call('HSET', names.task .. id, 'avoid', task.avoid)\n", "")],
    ),
    "a retry keeps the token": (
        "each_lease_has_its_own_token",
        [
            (
                "local token = id .. '.' .. fence .. '.' .. secret",
                "local token = task.lease_token or id .. '.' .. fence .. '.' .. secret",
            )
        ],
    ),
    "the fence does not increase": (
        "fencing_numbers_increase",
        [("local fence = rm.integer(rm.tick(names))", "local fence = '1'")],
    ),
    "an expired lease is renewed": (
        "expired_lease_goes_to_another_agent",
        [("rm.fail_attempt(names, id, task, now, {op = 'expired'", _RENEWS)],
    ),
    "leases never expire": (
        "expired_lease_goes_to_another_agent",
        [("  redis.call('ZADD', names.leases, ends, id)\n  return {id", "  return {id")],
    ),
    "renewal keeps the old expiry": (
        "heartbeat_renews_a_lease",
        [("  if #ends_of > 0 then redis.call('ZADD', names.leases, unpack(ends_of)) end\n", "")],
    ),
    "leased tasks are not recorded as held": (
        "leased_task_is_not_given_to_another",
        [("  redis.call('SADD', names.held .. agent.name, id)\n", "")],
    ),
    "leased tasks count as unclaimed": (
        "leased_task_is_not_given_to_another",
        [("    redis.call('ZREM', names.unclaimed, id)\n  else\n", "  else\n")],
    ),
    "assigned tasks stay queued": (
        "assigned_task_is_not_given_to_another",
        [("  unqueue_task(names, id, task.kind)\n  task.assigned = name\n", "  task.assigned = name\n")],
    ),
    "assignments never expire": (
        "unclaimed_assignment_is_taken_back",
        [("redis.call('ZADD', names.unclaimed, rm.seconds(", "rm.contains({}, rm.seconds(")],
    ),
    "a requeued task keeps its attempts": (
        "requeued_task_has_all_its_attempts_again",
        [
            (
                "  redis.call('HSET', names.task .. id, 'attempt', 0, 'requeued_at'",
                "  redis.call('HSET', names.task .. id, 'requeued_at'",
            )
        ],
    ),
    "a requeued task still expires": (
        "requeued_task_has_all_its_attempts_again",
        [("do redis.call('PERSIST', key .. id) end", "do local _ = key end")],
    ),
    "a requeued task waits for nothing": (
        "requeued_task_waits_for_its_dependencies_again",
        [
            (
                "  if #blockers > 0 then\n    redis.call('HSET', names.task .. id, 'state', 'waiting')",
                "  if false then\n    redis.call('HSET', names.task .. id, 'state', 'waiting')",
            )
        ],
    ),
    "ended tasks stay counted as open": (
        "namespace_task_quota_is_enforced",
        [("  rm.count_open(names, task, -1)\n", "")],
    ),
    "deadlines are not recorded": (
        "deadline_ends_a_task",
        [
            (
                "if request.deadline then redis.call('ZADD', names.deadlines, ",
                "if false then redis.call('ZADD', names.deadlines, ",
            )
        ],
    ),
    "pauses do not grow": ("retry_delays_double", [(" * 2 ^ (tonumber(task.attempt) - 1)", "")]),
    "no priorities": ("more_urgent_task_goes_first", [("rm.integer(tonumber(task.rank) * BAND + ", "rm.integer(")]),
    "no turns": ("submitters_take_turns", [("  return turn\nend", "  return 0\nend")]),
    # damage and pauses
    "damage is not reported": (
        "lease_without_its_task_stops_no_sweep",
        [("  redis.call('XADD', names.damaged,", "  rm.contains({},")],
    ),
    "pauses count as silence": (
        "pause_of_all_servers_costs_no_lease",
        [("then shift_deadlines(names, last, pause) end", "then last = now end")],
    ),
    "the end in a task's record does not move": (
        "pause_of_all_servers_costs_no_lease",
        [("        redis.call('HSET', task, 'lease_until', ends)\n", "")],
    ),
    # late results, silence and sessions
    "late results are refused": (
        "late_result_counts_until_another_has_the_task",
        [("  return task.state == 'pending' or task.state == 'retrying' or ", "  return ")],
    ),
    "late results keep their place in a queue": (
        "late_failure_counts_once",
        [("    rm.withdraw(names, id, task)\n    task.assigned = nil\n", "    task.assigned = nil\n")],
    ),
    "late failures count twice": (
        "late_failure_counts_once",
        [("if problem or has_failed(task) then", "if problem then")],
    ),
    "late results of replaced tokens count": (
        "late_result_is_refused_when_the_task_was_given_again",
        [("  if task.lease_token ~= token then return false end\n", "")],
    ),
    "late results of others count": (
        "late_result_is_refused_when_the_task_was_given_again",
        [("  if holders[#holders] ~= agent then return false end\n", "")],
    ),
    "late results of ended tasks count": (
        "late_result_of_an_ended_task_is_refused",
        [("  return task.state == 'pending' or task.state", "  return task.state ~= '' or task.state")],
    ),
    "a requeued task keeps its token": (
        "late_result_of_an_ended_task_is_refused",
        [("    'score', 'lease_token', 'expiries')", "    'score', 'expiries')")],
    ),
    "silence costs attempts": ("silence_costs_no_attempt", [("    task.attempt = tonumber(task.attempt) - 1\n", "")]),
    "leases expire without end": (
        "task_whose_leases_keep_expiring_ends",
        [("retry = expiries < EXPIRIES_MOST", "retry = true")],
    ),
    "silence takes leases": (
        "silent_agent_keeps_what_it_leased",
        [("    if not leased[entry[2][2]] then\n", "    if true then\n")],
    ),
    "calls of any session renew": (
        "calls_renew_the_leases_of_their_session",
        [("  if task.session ~= session or not", "  if not")],
    ),
    "calls renew without bound": (
        "calls_do_not_renew_beyond_deadline_or_progress",
        [("math.min(rm.lease_end(task, at), (progress + UNATTENDED_SECONDS) * 1000000)", "rm.lease_end(task, at)")],
    ),
    "leases outlast deadlines": (
        "calls_do_not_renew_beyond_deadline_or_progress",
        [("  return deadline and math.min(ends, deadline * 1000000) or ends\n", "  return ends\n")],
    ),
    "calls renew expired leases": (
        "expired_lease_is_not_renewed_by_calls",
        [("~= session or not rm.holds_lease(task, agent.name, task.lease_token, now) then", "~= session then")],
    ),
    "calls are no sign of life": (
        "calls_keep_an_agent_alive",
        [("      if at > last * 1000000 then rm.touch_agent(names, agent, at) end\n", "")],
    ),
    "live sessions lose their work": (
        "new_session_takes_over_from_one_that_ended",
        [
            (
                "elseif agent.session == '' or rm.is_session_live(names, agent, task.session, now) then",
                "elseif false then",
            )
        ],
    ),
    "silent sessions keep their work": (
        "new_session_takes_over_from_a_silent_one",
        [
            (
                "  return deadline and tonumber(deadline) > active_time(names, now)\n",
                "  return deadline\n",
            )
        ],
    ),
    "pauses silence sessions": (
        "pause_of_all_servers_silences_no_session",
        [("  redis.call('HINCRBY', names.counters, 'paused', rm.integer(by))\n", "")],
    ),
    # order
    "assigned, then queued": (
        "assigned_task_is_not_given_to_another",
        [
            (
                "  rm.queue_task(names, id, task)\n"
                "  local name = rm.assign_to_first(names, id, task, request.candidates, now)\n",
                "  task.score = '0'\n  local name = rm.assign_to_first(names, id, task, request.candidates, now)\n"
                "  rm.queue_task(names, id, task)\n",
            )
        ],
    ),
    "every living agent counts as able": (
        "failed_task_does_not_wait_for_incapable_agents",
        [
            (
                "if agent and rm.has_skills(agent, kind) and not failed",
                "if agent and not failed",
            )
        ],
    ),
    "history loses its last entry": (
        "long_history_keeps_the_newest_entries",
        [("-HISTORY_KEPT, -1)", "-HISTORY_KEPT, -2)")],
    ),
    "new submitters start at the first turn": (
        "new_submitter_starts_at_the_current_turn",
        [
            (
                "redis.call('HSET', names.turns, task.rank, rm.integer(math.max(reached, turn)), task.rank",
                "redis.call('HSET', names.turns, task.rank",
            )
        ],
    ),
    "cancelled tasks keep their turns": (
        "cancelled_tasks_use_no_turns",
        [("  if task.score then rm.leave_turns(names, id, task, 0) end\n", "")],
    ),
    "a task out of order uses up all turns before it": (
        "turns_of_one_submitter_do_not_delay_a_new_one",
        [("math.min(tonumber(task.score) % BAND, math.max(reached, unused))", "tonumber(task.score) % BAND")],
    ),
    "own tasks use turns": (
        "own_tasks_of_an_agent_use_no_turns",
        [("  if task.submitter == agent then return", "  if false then return")],
    ),
    "a requeued task keeps its turn": (
        "requeued_task_gets_a_new_turn",
        [("'dead_entry', 'deadline',\n    'score',", "'dead_entry', 'deadline',")],
    ),
    "tasks that end in a queue stay there": (
        "cancelled_task_leaves_its_queue",
        [("  if not task.assigned then unqueue_task(names, id, task.kind) end\n", "")],
    ),
    "blockers are checked before unblocking": (
        "task_waits_for_all_its_dependencies",
        [
            (_SETTLES, ""),
            (_LAST_OF_SETTLING, _LAST_OF_SETTLING + _SETTLES),
        ],
    ),
}


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Generator[RedisServer]:
    """A Redis for this module alone. Its library is broken repeatedly."""
    redis = RedisServer(tmp_path_factory.mktemp("mutants"))
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
async def client(own_redis: RedisServer) -> AsyncGenerator[Client]:
    """A client of that Redis."""
    async with connect(own_redis.url) as connected:
        yield connected


async def _tasks(client: Client, code: str) -> TaskNamespace:
    await client.execute_command("FUNCTION", "LOAD", "REPLACE", code)
    return TaskNamespace(client, f"mutant-{next(_numbers)}")


def _mutated(replacements: list[tuple[str, str]]) -> str:
    code = library_code()
    for old, new in replacements:
        assert code.count(old) == 1, f"{code.count(old)} occurrences of {old!r}"
        code = code.replace(old, new)
    return code


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
async def test_unchanged_library_has_every_behaviour(client: Client, behaviour: str) -> None:
    await BEHAVIOURS[behaviour](await _tasks(client, library_code()))


@pytest.mark.parametrize("mutation", MUTATIONS)
async def test_mutation_breaks_a_behaviour(client: Client, mutation: str) -> None:
    behaviour, replacements = MUTATIONS[mutation]
    tasks = await _tasks(client, _mutated(replacements))
    with pytest.raises((AssertionError, ResponseError)):
        await BEHAVIOURS[behaviour](tasks)


def test_every_behaviour_detects_a_mutation() -> None:
    assert {behaviour for behaviour, _ in MUTATIONS.values()} == set(BEHAVIOURS)
