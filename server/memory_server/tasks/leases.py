"""Leasing tasks, and completing or failing them under the lease."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time
from contextlib import suppress
from typing import Any

from memory_core.errors import MemoryServiceError, NotFound, after_write
from memory_core.records import redis_time
from memory_core.records.authority import Effect
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.task import Task, load_tasks
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_server.contract import validation
from memory_server.contract.arguments import SearchArguments
from memory_server.contract.memories import Hit, Memory
from memory_server.contract.task_arguments import CompleteArguments, FailArguments, PendingArguments
from memory_server.contract.task_outcomes import TaskStateAnswer
from memory_server.contract.tasks import ClaimedTask, HeldElsewhere, PendingAnswer, TaskView
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.untrusted_text import counted
from memory_server.engine.inflight_reads import reads
from memory_server.engine.presence import AgentSession
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.entries import TASK
from memory_server.events.listeners import Waiter
from memory_server.events.waiting import last_position
from memory_server.memories.secrets_policy import has_credential
from memory_server.search.search import semantic_search
from memory_server.tasks.lifecycle import DESCRIPTION_BYTES, end_task, load_history
from memory_server.tasks.parts import fit_claims, newest_texts
from memory_server.tasks.results import load_predecessors, store_result
from memory_server.tasks.routing import settle_soon, sweep_tasks
from memory_server.tasks.services import TaskServices

_POLL_SECONDS = 5.0
"""Events wake a waiting claim; the poll covers lost events."""
_CLOCK_SKEW_SECONDS = 0.05
_ANSWER_TOKENS = DEFAULT_MAX_TOKENS - 1000
"""Leaves room for what a registration adds."""
_TASK_TOKENS = DEFAULT_MAX_TOKENS // 10
"""Tokens for each task that a caller asks for."""
_CUT = "long parts of tasks are shortened; get_task shows them page by page, and retrieve_memory whole memories"
_FAILURE_CHARS = 2 * DESCRIPTION_BYTES
"""How much of earlier errors and handoffs comes with a task: those of the last attempt always fit."""
_FAILURES = ("failed", "expired", "lost")
_LEASED_AT_ONCE = 32
"""Leases that one Function call gives; it blocks Redis meanwhile."""
_RESUMED_AT_ONCE = 8
_FULL_WAIT_SECONDS = 2.0
"""How long a claim waits for an agent that holds as many tasks as it takes."""


async def get_pending_tasks(service: TaskServices, request: RequestContext, args: PendingArguments) -> PendingAnswer:
    """Lease tasks to the caller, first those that an earlier session of it held; see also `resume_leases`.

    Without `claim`, only show the tasks assigned to it.

    Raises:
        NotFound: the caller is not registered.
    """
    if not args.claim:
        return await _show_assigned(service.backend, request.caller, args)
    answer, shortened = await _claim(service, request, args.limit), None
    if args.wait_seconds and not answer["tasks"]:
        is_full = answer["held"] >= answer["most"]
        wait_seconds = min(args.wait_seconds, _FULL_WAIT_SECONDS) if is_full else args.wait_seconds
        seconds, shortened = request.longest_wait(wait_seconds)
        answer = await _wait_and_claim(service, request, args.limit, seconds)
    if shortened and not (answer["tasks"] or answer["mine"] or answer["elsewhere"]):
        return PendingAnswer(
            tasks=[], open_tasks=answer["held"], max_tasks=answer["most"], partial=True, reason=shortened
        )
    with after_write():
        described = await _describe(service, request, args.with_memories, answer, args.limit)
    reason = "; ".join(filter(None, [described.reason, shortened]))
    return described.model_copy(update={"partial": bool(reason), "reason": reason or None})


async def resume_leases(service: TaskServices, request: RequestContext) -> PendingAnswer:
    """Give the caller what an earlier session of it held, under new tokens, and show what it holds."""
    answer = await _claim_slice(service, request, 0, _RESUMED_AT_ONCE)
    with after_write():
        return await _describe(service, request, 0, answer)


async def complete_task(service: TaskServices, request: RequestContext, args: CompleteArguments) -> TaskStateAnswer:
    """Complete a task with its result, which may also be stored as a memory.

    A result that comes after the lease expired is accepted until another agent is given the task.

    Raises:
        NotFound: the caller never had a task with that id. LeaseLost: the token is not in force.
        InvalidArgument: the result is too large or not JSON.
    """
    limit, call = service.settings.tasks.payload_bytes, new_id()
    texts = {
        "result": validation.check_json(args.result, "result", limit),
        "metrics": validation.check_json(args.metrics, "metrics", limit),
    }
    fields = {"last_call": call, **texts}
    answer = await end_task(
        service,
        request,
        "rm1_task_complete",
        args.task_id,
        "complete_task",
        texts,
        repeatable=True,
        token=args.lease_token,
        call=call,
        fields=[part for name, value in fields.items() if value is not None for part in (name, value)],
        duration_ms=_duration(args.metrics),
    )
    ended = TaskStateAnswer(task_id=args.task_id, state=answer["status"], submitted_by=answer.get("submitter"))
    if not args.store_result:
        return ended
    if args.result is None:
        reason = "nothing was stored as a memory: there is no result"
        return ended.model_copy(update={"partial": True, "reason": reason})
    try:
        return ended.model_copy(update={"memory_id": await store_result(service, request, args)})
    except MemoryServiceError as error:
        reason = f"the task is completed, but its result was not stored as a memory: {error.message}"
        return ended.model_copy(update={"partial": True, "reason": reason})


async def fail_task(service: TaskServices, request: RequestContext, args: FailArguments) -> TaskStateAnswer:
    """End an attempt without success: the task is retried after a delay, or becomes dead.

    Raises:
        NotFound: the caller never had a task with that id. LeaseLost: the token is not in force.
    """
    settings = service.settings.tasks
    texts = {
        "error": validation.check_text(args.error, "error", DESCRIPTION_BYTES),
        "handoff": validation.check_text(args.handoff, "handoff", DESCRIPTION_BYTES) if args.handoff else None,
    }
    answer = await end_task(
        service,
        request,
        "rm1_task_fail",
        args.task_id,
        "fail_task",
        texts,
        **texts,
        repeatable=True,
        token=args.lease_token,
        call=new_id(),
        retry=args.retry,
        backoff=settings.backoff_seconds,
        backoff_most=settings.backoff_most_seconds,
        jitter=random.random(),  # noqa: S311 # nosec B311
    )
    ended = TaskStateAnswer(
        task_id=args.task_id,
        state=answer["status"],
        submitted_by=answer.get("submitter"),
        attempt=answer.get("attempt"),
        max_attempts=answer.get("most"),
    )
    if "next_at" not in answer:
        return ended
    due = float(answer["next_at"])
    delay = max(due - redis_time.now(), 0.0) + _CLOCK_SKEW_SECONDS
    # If this process ends first, the next periodic sweep retries the task.
    service.soon(("retry", args.task_id), lambda: sweep_tasks(service, request.caller.namespace), delay)
    return ended.model_copy(update={"next_attempt_at": to_iso(due)})


async def _claim(service: TaskServices, request: RequestContext, limit: int) -> dict[str, Any]:
    """Lease up to `limit` tasks, in slices. A failure after the first slice leaves the others to the next claim."""
    answer = await _claim_slice(service, request, min(limit, _LEASED_AT_ONCE), _RESUMED_AT_ONCE)
    first = {part: answer.get(part) for part in ("mine", "elsewhere", "progress")}
    tasks, is_full = list[Any](answer["tasks"]), len(answer["tasks"]) == _LEASED_AT_ONCE
    with suppress(MemoryServiceError):
        while is_full and (left := limit - len(tasks)) > 0:
            answer = await _claim_slice(service, request, min(left, _LEASED_AT_ONCE), 0)
            tasks += answer["tasks"]
            is_full = len(answer["tasks"]) == _LEASED_AT_ONCE
    return answer | first | {"tasks": tasks}


async def _claim_slice(service: TaskServices, request: RequestContext, limit: int, resumed: int) -> dict[str, Any]:
    """Lease up to `limit` tasks, and before that up to `resumed` that an earlier session of the caller holds."""
    keys = Keys(request.caller.namespace)
    await check_exists(service.backend, request.caller)
    answer = await service.backend.write(
        "rm1_task_claim",
        [keys.leases],
        repeatable=True,
        prefix=keys.prefix,
        agent=request.caller.agent,
        call=new_id(),
        session=request.session,
        secrets=[secrets.token_hex(8) for _ in range(limit)],
        resumes=[secrets.token_hex(8) for _ in range(resumed)],
        audited_call=request.call,
        audit=request.caller.audit("get_pending_tasks"),
        keep=service.settings.tasks.keep_seconds,
    )
    if answer["status"] == "unknown":
        raise not_registered(request.caller)
    if answer["tasks"]:
        service.presence.renew(AgentSession(request.caller.namespace, request.caller.agent, request.session))
    settle_soon(service, request.caller.namespace, answer)
    return answer


async def _wait_and_claim(service: TaskServices, request: RequestContext, limit: int, seconds: float) -> dict[str, Any]:
    """Claim again after each task event for the caller, until the time runs out."""
    until = time.monotonic() + seconds
    waiter = Waiter(request.caller.agent, frozenset({TASK}))
    at = await last_position(service.backend, request.caller.namespace)
    with service.events.listening(request.caller.namespace, waiter, at):
        while True:
            answer = await _claim(service, request, limit)
            left = until - time.monotonic()
            if answer["tasks"] or left <= 0 or waiter.closed:
                return answer
            async with request.waiting():
                await waiter.wait(min(left, _POLL_SECONDS))
            waiter.queue.clear()


def not_registered(caller: Caller) -> NotFound:
    return NotFound(f"{caller.agent} is not registered here", hint="call register_agent first")


async def check_exists(backend: Backend, caller: Caller) -> None:
    """Refuse to act for an agent of a namespace to which nothing was written; no key is created. Raises NotFound."""
    if not await backend.exists(caller.namespace):
        raise not_registered(caller)


async def _show_assigned(backend: Backend, caller: Caller, args: PendingArguments) -> PendingAnswer:
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> list[Task]:
        entries = await client.xrange(keys.inbox(caller.agent), count=args.limit)
        names = [fields.get(b"task", b"").decode(errors="replace") for _, fields in entries]
        return await load_tasks(client, keys, names)

    tasks = await backend.read(fetch)
    shown = [_claimed(task) for task in tasks]
    return fit_claims(PendingAnswer(tasks=shown), max(_ANSWER_TOKENS, args.limit * _TASK_TOKENS), _CUT)


@reads
async def _describe(
    service: TaskServices, request: RequestContext, memories: int, answer: dict[str, Any], limit: int = 0
) -> PendingAnswer:
    """Add the task, its earlier failures and related memories to each lease; no memories to those held before.

    `limit` is how many tasks the caller asked for.
    """
    keys = Keys(request.caller.namespace)
    leases = {found["id"]: found for found in [*answer["tasks"], *answer["mine"]]}
    progress = json.loads(answer["progress"]) if answer.get("progress") else None
    new, mine = [found["id"] for found in answer["tasks"]], {found["id"] for found in answer["mine"]}
    tasks = await service.backend.read(lambda client: load_tasks(client, keys, leases))
    reader, unread = request.as_reader(), None
    if memories and new:
        unread = reader.missing("memories are", Effect.READ_MEMORIES)
    number = 0 if unread else memories
    described = await asyncio.gather(
        *(
            _describe_task(service, request, task, leases[task.id], 0 if task.id in mine else number, progress)
            for task in tasks
        )
    )
    unseen = None
    if any(task.predecessors for task, _ in described):
        unseen = request.missing("results of earlier tasks are", Effect.READ_MEMORIES)
    unshown = answer["held"] - len(leases) - len(answer["elsewhere"])
    hidden = counted(unshown, "more task that you hold is", "more tasks that you hold are")
    rest = f"{hidden} not shown: call again, or end some first" if unshown > 0 else None
    found = [unread, unseen, rest, *(reason for _, reason in described)]
    reasons = list(dict.fromkeys(reason for reason in found if reason))
    answered = PendingAnswer(
        tasks=[task for task, _ in described if task.task_id not in mine],
        held=[task for task, _ in described if task.task_id in mine],
        elsewhere=[
            HeldElsewhere(task_id=found["id"], lease_until=to_iso(float(found["lease_until"])) or "")
            for found in answer["elsewhere"]
        ],
        open_tasks=answer["held"],
        max_tasks=answer["most"],
        partial=bool(reasons),
        reason="; ".join(reasons) or None,
    )
    why = request.missing("long parts of tasks are", Effect.SEE_TASKS) or _CUT
    return fit_claims(answered, max(_ANSWER_TOKENS, limit * _TASK_TOKENS), why)


async def _describe_task(
    service: TaskServices, request: RequestContext, task: Task, lease: dict[str, Any], memories: int, progress: Any
) -> tuple[ClaimedTask, str | None]:
    """Describe a leased task; also return what is missing. A failed search keeps the lease."""
    history = await load_history(service.backend, request.caller.namespace, task.id)
    failures = [event for event in history if event.op in _FAILURES]
    failures, omitted = newest_texts(failures, _FAILURE_CHARS)
    hits, reason = list[Hit](), None
    if memories:
        try:
            reader = request.as_reader()
            found = await semantic_search(service, reader, SearchArguments(query=task.description, limit=memories))
            hits, reason = _relevant(found.hits, service.settings.tasks.memories_from), found.reason
        except MemoryServiceError as error:
            reason = f"memories could not be searched: {error.message}"
    if omitted:
        reason = "; ".join(filter(None, [reason, f"get_task shows the texts of {counted(omitted, 'earlier failure')}"]))
    extra = {
        "lease_token": lease["lease_token"],
        "lease_until": to_iso(float(lease["lease_until"])),
        "attempt": int(lease["attempt"]),
        "resumed": bool(lease.get("resumed")),
        "earlier_failures": failures,
        "predecessors": await load_predecessors(service, request, task),
        "memories": hits,
    }
    if progress is not None and (lease.get("resumed") or "fence" not in lease):
        extra |= {"progress": progress, "progress_by": request.caller.agent}
    return _claimed(task).model_copy(update=extra), reason


def _relevant(hits: list[Hit], lowest: float) -> list[Hit]:
    """Keep what is on the task's subject. Nobody asked for these memories, so none is sensitive or a credential.

    Without a vector, the words must explain half as much of the description.
    """

    def closeness(hit: Hit) -> float:
        return 2 * (hit.keyword_score or 0.0) if hit.vector_score is None else hit.vector_score

    def is_secret(memory: Memory) -> bool:
        texts = [memory.content, memory.context, memory.source, *memory.tags]
        return memory.sensitive or has_credential(texts, memory.metadata)

    return [hit for hit in hits if closeness(hit) >= lowest and not is_secret(hit.memory)]


def _claimed(task: Task) -> ClaimedTask:
    return ClaimedTask.model_validate(TaskView.of(task).model_dump())


def _duration(metrics: dict[str, Any] | None) -> int | None:
    value = (metrics or {}).get("duration_ms")
    return int(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None
