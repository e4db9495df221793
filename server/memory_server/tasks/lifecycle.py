"""Showing, listing, cancelling and requeueing tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memory_core.errors import Conflict, InvalidArgument, LeaseLost, NotFound, QuotaExceeded, StoreFull, echo
from memory_core.records.agent import held_since, load_agent
from memory_core.records.codec import unpack
from memory_core.records.damage import execute
from memory_core.records.keys import Keys
from memory_core.records.names import check_label
from memory_core.records.task import Task, load_tasks
from memory_core.records.times import to_iso
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_server.contract import cursors, validation
from memory_server.contract.answer import most_fitting
from memory_server.contract.task_arguments import ListTasksArguments
from memory_server.contract.task_outcomes import TaskStateAnswer
from memory_server.contract.tasks import TaskAnswer, TaskEvent, TaskListAnswer, TaskView
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.untrusted_text import counted
from memory_server.engine.damage import readable
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.tasks.parts import first_page, long_texts, most_chars, next_page, shortened
from memory_server.tasks.routing import dispatch_soon, settle_soon
from memory_server.tasks.services import TaskServices

DESCRIPTION_BYTES = 16_384
BRIEF_BYTES = 2048
"""The most that the texts of a call that ends a task may add to a full Redis."""
_MAX_CAPABILITIES = 64
_MAX_REQUIRED = 16
_MAX_REQUIRED_BYTES = 1024
"""A claim compares the required capabilities of every kind of task that waits."""
_MAX_LISTED = 1000
_HISTORY_CHARS = 100_000
_LISTED_TOKENS = DEFAULT_MAX_TOKENS // 20
"""Tokens for each task that a caller asks to list."""


async def get_task(
    service: TaskServices, caller: Caller, task_id: str, max_tokens: int = 0, cursor: str | None = None
) -> TaskAnswer:
    """Return a task with its history, or a page of what an answer before it left out. An operator sees neither payload
    nor result, and an agent that is only able to do the task sees nothing that its parties wrote. An agent that holds a
    task that depends on it sees its result.

    Raises:
        NotFound: no task with that id that the caller may see. InvalidArgument: the cursor is unknown or outdated.
    """
    task = await find_task(service.backend, caller, task_id)
    whole = sees_whole(caller, task, await held_since_of(service.backend, caller))
    concerned = whole or caller.oversees
    history = await load_history(service.backend, caller.namespace, task.id) if concerned else []
    view = TaskView.of(task, whole=whole, error=concerned)
    needed = await service.backend.read(lambda client: _results_for(client, caller))
    if not whole and task.id in needed:
        view = view.model_copy(update={"result": task.result, "result_memory": task.result_memory})
    answer = TaskAnswer(task=view, history=history)
    if cursor is not None:
        return next_page(answer, cursor, max_tokens)
    return first_page(answer, max_tokens, _HISTORY_CHARS)


def sees_whole(caller: Caller, task: Task, since: float) -> bool:
    """Whether a caller sees all of a task. `since` is when it took over its name."""
    return caller.admin or is_party(caller, task, since)


def is_party(caller: Caller, task: Task, since: float) -> bool:
    """Whether a task's result is meant for a caller: an admin who is no party sees tasks, and hands no result on."""
    return task.is_party(caller.agent, since) and not caller.public_only


async def held_since_of(backend: Backend, caller: Caller) -> float:
    """Return when the last holder of the caller's name left it, in epoch seconds."""
    keys = Keys(caller.namespace)
    return await backend.read(lambda client: held_since(client, keys, caller.agent, backend.integrity))


async def _results_for(client: Client, caller: Caller) -> frozenset[str]:
    """Return the ids of the tasks whose results the tasks that the caller holds need."""
    keys = Keys(caller.namespace)
    held = [] if caller.public_only else await client.smembers(keys.held(caller.agent))
    tasks = await load_tasks(client, keys, [raw.decode(errors="replace") for raw in held])
    return frozenset(task_id for task in tasks if task.assigned == caller.agent for task_id in task.results_of)


async def cancel_task(service: TaskServices, request: RequestContext, task_id: str, reason: str) -> TaskStateAnswer:
    """Cancel an open task of the caller. Its lease token becomes invalid, and the agent that holds it gets an event.

    Raises:
        NotFound: the caller submitted no task with that id. Conflict: the task has ended.
    """
    reason = validation.check_text(reason, "reason", DESCRIPTION_BYTES)
    texts = {"reason": reason}
    answer = await end_task(service, request, "rm1_task_cancel", task_id, "cancel_task", texts, **texts)
    if answer["status"] == "ended":
        raise Conflict(f"the task is {answer['state']} already", hint="submit a new one")
    return TaskStateAnswer(task_id=task_id, state=answer["state"])


async def requeue_task(service: TaskServices, request: RequestContext, task_id: str) -> TaskStateAnswer:
    """Take a dead task of the caller out of the dead letters and try it again, as if for the first time.

    Raises:
        NotFound: the caller submitted no task with that id. Conflict: it is not dead, depends on a failed task, or
            its `assign_to` left. QuotaExceeded: too many tasks are open.
    """
    limits = open_limits(service.settings)
    answer = await act_on_task(service, request, "rm1_task_requeue", task_id, "requeue_task", **limits)
    raise_for_limit(answer["status"], service.settings)
    if answer["status"] == "not_dead":
        raise Conflict(f"the task is {answer['state']}, not dead", hint="only dead tasks are requeued")
    if answer["status"] == "ended_dependency":
        raise Conflict(f"it depends on task {answer['id']}, which is {answer['state']}", hint="requeue that one first")
    if answer["status"] == "unknown_agent":
        message = f"it is only for {answer['agent']}, which is not registered"
        raise Conflict(message, hint="submit it again for another agent")
    return TaskStateAnswer(task_id=task_id, state=answer["state"])


def open_limits(settings: Settings) -> dict[str, int]:
    """Return what a Function that opens a task needs to know: how many may be open in all, and of one agent."""
    return {"quota": settings.tasks.open_tasks, "own_quota": settings.quotas.open_tasks}


def raise_for_limit(status: str, settings: Settings) -> None:
    """Raise QuotaExceeded if a Function opened no task because of a limit."""
    match status:
        case "quota":
            message = "this namespace has reached its limit of open tasks"
            raise QuotaExceeded(message, hint="wait until some have ended", retry_after=5.0)
        case "own_quota":
            message = f"you have {counted(settings.quotas.open_tasks, 'open task')}, the limit for one agent"
            raise QuotaExceeded(message, hint="wait until some have ended, or cancel_task", retry_after=5.0)
        case "too_many_kinds":
            message = "too many combinations of assign_to, required_capabilities and min_context_window"
            hint = "use a combination of your open tasks again"
            raise QuotaExceeded(f"your open tasks have {message}", hint=hint, retry_after=5.0)
        case _:
            return


async def list_tasks(service: TaskServices, caller: Caller, args: ListTasksArguments) -> TaskListAnswer:
    """List the newest tasks that the caller submitted, has or had; without `states`, in all states.

    Each task has its share of the answer: the longest payloads, results and errors are shortened first.
    Raises InvalidArgument for a cursor of another list.
    """
    keys = Keys(caller.namespace)
    which = cursors.list_of("list_tasks", caller.namespace, caller.agent, args.model_dump(mode="json"))
    before = None if args.cursor is None else cursors.read(args.cursor, which)

    async def fetch(client: Client) -> list[Task]:
        pipe = client.pipeline(transaction=False)
        for key in (keys.submitted(caller.agent), keys.worked(caller.agent)):
            pipe.zrange(key, 0, _MAX_LISTED - 1, desc=True)
        pipe.xrange(keys.inbox(caller.agent), count=_MAX_LISTED)
        submitted, worked, assigned = await execute(pipe)
        names = {*submitted, *worked, *(fields.get(b"task", b"") for _, fields in assigned)}
        newest = sorted((name.decode(errors="replace") for name in names), reverse=True)[:_MAX_LISTED]
        return await load_tasks(client, keys, newest)

    since = await held_since_of(service.backend, caller)
    found = [task for task in await service.backend.read(fetch) if task.is_party(caller.agent, since)]
    tasks = [task for task in found if not args.states or task.state in args.states]
    left = [TaskView.of(task) for task in tasks if before is None or task.id < before]
    views = [view.with_short_lists() for view in left[: args.limit]]
    texts = [long_texts(view) for view in views]

    def at(number: int, chars: int) -> TaskListAnswer:
        shown = [shortened(view, parts, chars) for view, parts in zip(views[:number], texts, strict=False)]
        count = sum(view.cut is not None for view in shown)
        reason = f"long parts of {counted(count, 'task')} are shortened; get_task shows them" if count else None
        cursor = cursors.write(which, left[number - 1].task_id) if 0 < number < len(left) else None
        return TaskListAnswer(tasks=shown, next_cursor=cursor, total=len(tasks), partial=bool(reason), reason=reason)

    most = max(DEFAULT_MAX_TOKENS, args.limit * _LISTED_TOKENS)
    number = most_fitting(len(views), most, lambda number: at(number, 0).tokens(most))
    lengths = [len(text) for parts in texts[:number] for text in parts.values()]
    return at(number, most_chars(lengths, most, lambda chars: at(number, chars).tokens()))


async def find_task(backend: Backend, caller: Caller, task_id: str) -> Task:
    """Load a task that the caller may see.

    Raises:
        NotFound: no task with that id that the caller may see.
    """
    found = await visible_tasks(backend, caller, [validation.check_id(task_id, "task_id")])
    if not found:
        raise no_task(task_id)
    return found[0]


async def visible_tasks(backend: Backend, caller: Caller, task_ids: Sequence[str]) -> list[Task]:
    """Load the tasks that the caller may see. A missing task costs the same commands as a hidden one."""
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> list[Task]:
        since = await held_since(client, keys, caller.agent, backend.integrity)
        tasks = await load_tasks(client, keys, task_ids)
        if sum(task.is_party(caller.agent, since) for task in tasks) == len(task_ids):
            return tasks
        profile = await load_agent(client, keys, caller.agent)
        able = {task.id for task in tasks if profile is not None and profile.is_able(task.kind)}
        needed = await _results_for(client, caller)
        return [
            task
            for task in tasks
            if caller.oversees or task.id in needed or task.may_see(caller.agent, task.id in able, since)
        ]

    return await backend.read(fetch)


def no_task(task_id: str) -> NotFound:
    """Return the error for unknown and for hidden tasks."""
    return NotFound(f"no task {echo(task_id)} that you may see", hint="use a task_id that a tool gave you")


async def load_history(backend: Backend, namespace: str, task_id: str) -> list[TaskEvent]:
    """Load the history of a task, oldest event first."""
    key = Keys(namespace).history(task_id)
    return await readable(backend, key, await backend.read(lambda client: client.lrange(key, 0, -1)), _read_event)


def _read_event(row: bytes) -> TaskEvent:
    entry: dict[str, Any] = unpack(row)
    return TaskEvent.model_validate(entry | {"at": to_iso(float(entry["at"]))})


def check_capabilities(labels: Sequence[str]) -> tuple[str, ...]:
    """Return distinct labels, sorted and with case folded.

    Raises:
        InvalidArgument: there are too many, or one is not a label.
    """
    if len(labels) > _MAX_CAPABILITIES:
        raise InvalidArgument(f"{len(labels)} capabilities; at most {_MAX_CAPABILITIES} are allowed")
    return tuple(sorted({check_label(label, "capability").casefold() for label in labels}))


def check_required(labels: Sequence[str]) -> tuple[str, ...]:
    """Return what a task requires, as `check_capabilities`; raises InvalidArgument also if it is long in all."""
    required = check_capabilities(labels)
    size = sum(len(label.encode()) for label in required)
    if len(required) > _MAX_REQUIRED or size > _MAX_REQUIRED_BYTES:
        raise InvalidArgument(
            f"{len(required)} required capabilities of {size} bytes; a task may require at most {_MAX_REQUIRED}"
            f" of {_MAX_REQUIRED_BYTES} bytes in all",
            hint="require one capability that stands for several",
        )
    return required


async def end_task(
    service: TaskServices,
    request: RequestContext,
    function: str,
    task_id: str,
    op: str,
    texts: Mapping[str, str | None],
    **fields: Any,
) -> dict[str, Any]:
    """Call a Function that ends an attempt or a task. `texts` are those among its fields that the caller wrote.

    Raises as `act_on_task`, and StoreFull: a full Redis takes only short texts.
    """
    if sum(len(text.encode()) for text in texts.values() if text) <= BRIEF_BYTES:
        return await act_on_task(service, request, f"{function}_brief", task_id, op, **fields)
    try:
        return await act_on_task(service, request, function, task_id, op, **fields)
    except StoreFull as error:
        named = " and ".join(name for name, text in texts.items() if text)
        hint = f"shorten {named} to {BRIEF_BYTES} bytes in all, or {error.hint}"
        raise StoreFull(error.message, hint=hint) from error


async def act_on_task(
    service: TaskServices, request: RequestContext, function: str, task_id: str, op: str, **fields: Any
) -> dict[str, Any]:
    """Call a Function that changes one task for the caller, then dispatch.

    Raises:
        NotFound: no such task that the caller may change. LeaseLost: the lease token is not in force.
    """
    keys, checked = Keys(request.caller.namespace), validation.check_id(task_id, "task_id")
    if not await service.backend.exists(keys.namespace):
        raise no_task(task_id)
    answer = await service.backend.write(
        function,
        [keys.leases],
        prefix=keys.prefix,
        id=checked,
        agent=request.caller.agent,
        admin=request.caller.admin,
        keep=service.settings.tasks.keep_seconds,
        audited_call=request.call,
        audit=request.caller.audit(op, [task_id]),
        **fields,
    )
    if answer["status"] == "unknown":
        raise no_task(task_id)
    if answer["status"] == "stale":
        message = f"this lease_token is not in force: the task is {answer['state']}"
        raise LeaseLost(message, hint="stop working on it; get_pending_tasks shows what you hold and gives new tasks")
    settle_soon(service, request.caller.namespace, answer)
    dispatch_soon(service, request.caller.namespace)
    return answer
