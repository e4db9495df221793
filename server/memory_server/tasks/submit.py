"""Submitting a task: checks it, finds similar open tasks, and routes it to the best agent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError, NotFound, echo
from memory_core.records import redis_time
from memory_core.records.authority import Effect
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR, check_label, check_name
from memory_core.records.task import Task, TaskState, load_vectors
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import parse_time, to_redis
from memory_core.records.vectors import Matrix, from_stored, to_stored
from memory_core.settings.settings import Settings
from memory_server.contract import validation
from memory_server.contract.task_arguments import DistributeArguments
from memory_server.contract.tasks import DistributeAnswer, SimilarTask, Suited, Why
from memory_server.contract.untrusted_text import word
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.index import queries
from memory_server.tasks.lifecycle import (
    DESCRIPTION_BYTES,
    check_required,
    find_task,
    held_since_of,
    is_party,
    no_task,
    open_limits,
    raise_for_limit,
    visible_tasks,
)
from memory_server.tasks.routing import Demand, able, note_assigned, rank, roster
from memory_server.tasks.services import TaskServices

_EMBED_SECONDS = 0.5
"""How long a submission waits for the vector of its text. Without it, routing ignores meaning."""
_IDEMPOTENCY_SECONDS = 86_400
_MAX_KEY_BYTES = 256
_MAX_DEPENDENCIES = 256
_MAX_CANDIDATES = 8
"""The Function tries them in turn, and blocks Redis meanwhile."""
_MAX_SIMILAR = 3
_MAX_COMPARED = 1536
"""Limit of the search for similar tasks, which may find many that the caller cannot see."""
_ROUNDING = 1e-5
_MAX_CONSIDERED = 3
_SNIPPET = 160


async def distribute_task(
    service: TaskServices, request: RequestContext, args: DistributeArguments
) -> DistributeAnswer:
    """Submit one task. It goes to the best able agent with free capacity, or waits in the queue or for dependencies.

    Raises:
        InvalidArgument, NotFound (an agent or a dependency), Conflict (idempotency key, ended dependency),
        QuotaExceeded, StoreUnavailable, OutcomeUnknown.
    """
    caller, args = request.caller, _checked(service.settings, args)
    kind = TaskKind(tuple(args.required_capabilities or ()), args.min_context_window, args.assign_to or "")
    before = await visible_tasks(service.backend, caller, args.depends_on or ())
    known = {task.id for task in before}
    for task_id in args.depends_on or ():
        if task_id not in known:
            raise no_task(task_id)
    if args.assign_to and not await service.backend.exists(caller.namespace):
        raise _unknown_agent(args.assign_to)
    await service.namespaces.get(caller.namespace)
    since = await held_since_of(service.backend, caller) if before else 0.0
    results_of = [task.id for task in before if is_party(caller, task, since)]
    model, vector = await service.models.current(caller.namespace), None
    with suppress(MemoryServiceError):
        (vector,) = await service.embeddings.embed([args.description], caller, model=model, wait=_EMBED_SECONDS)
    demand = Demand(kind, args.task_type, args.priority, vector)
    ranked = rank(able(await roster(service, caller.namespace), kind, redis_time.now()), demand)
    unread = request.missing("similar tasks are", Effect.SEE_TASKS)
    similar = [] if unread else await _similar(service, caller, vector, model)
    await request.check_stale_credential()
    answer = await _submit(service, request, args, demand, model, ranked, results_of)
    if answer["status"] == "replayed":
        task = await find_task(service.backend, caller, answer["id"])
        why = Why(reason="a task was already submitted with this idempotency_key")
        return DistributeAnswer(task_id=task.id, state=task.state, assigned_to=task.assigned, why=why, replayed=True)
    assigned = answer.get("assigned")
    note_assigned(service, caller.namespace, assigned)
    return DistributeAnswer(
        task_id=answer["id"],
        state=answer["state"],
        assigned_to=assigned,
        why=_why(answer["state"], kind, ranked, assigned),
        similar_tasks=similar,
        partial=bool(unread),
        reason=unread,
    )


def _checked(settings: Settings, args: DistributeArguments) -> DistributeArguments:
    validation.check_text(args.description, "description", DESCRIPTION_BYTES)
    validation.check_json(args.payload, "payload", settings.tasks.payload_bytes)
    if args.idempotency_key is not None:
        validation.check_text(args.idempotency_key, "idempotency_key", _MAX_KEY_BYTES)
    depends_on = args.depends_on or []
    if len(depends_on) > _MAX_DEPENDENCIES:
        raise InvalidArgument(f"{len(depends_on)} dependencies; at most {_MAX_DEPENDENCIES} are allowed")
    checked = {
        "task_type": check_label(args.task_type, "task_type"),
        "assign_to": check_name(args.assign_to, "assign_to") if args.assign_to else None,
        "required_capabilities": list(check_required(args.required_capabilities or ())),
        "depends_on": list(dict.fromkeys(validation.check_id(task_id, "depends_on") for task_id in depends_on)),
    }
    return args.model_copy(update=checked)


async def _submit(
    service: TaskServices,
    request: RequestContext,
    args: DistributeArguments,
    demand: Demand,
    model: Model,
    ranked: Sequence[Suited],
    results_of: Sequence[str],
) -> dict[str, Any]:
    keys, task_id = Keys(request.caller.namespace), new_id()
    free_first = sorted(ranked, key=lambda suited: not suited.free)
    deadline = None if args.deadline is None else parse_time(args.deadline, "deadline")
    answer = await service.backend.write(
        "rm1_task_submit",
        [keys.leases, keys.idempotency(f"task:{request.caller.agent}", args.idempotency_key or "")],
        repeatable=True,
        prefix=keys.prefix,
        id=task_id,
        fields=_fields(service.settings, request.caller, args, demand.kind, deadline, results_of),
        depends_on=args.depends_on or [],
        only=demand.kind.only,
        deadline=deadline,
        vector=None if demand.vector is None else to_stored(demand.vector, model),
        vector_field=model.field,
        candidates=[suited.agent for suited in free_first[:_MAX_CANDIDATES]],
        **open_limits(service.settings),
        idempotency=_idempotency(args),
        audited_call=request.call,
        audit=request.caller.audit("distribute_task", [task_id]),
    )
    _raise_for(answer, args, service.settings)
    return answer


def _fields(
    settings: Settings,
    caller: Caller,
    args: DistributeArguments,
    kind: TaskKind,
    deadline: float | None,
    results_of: Sequence[str],
) -> list[str | bytes | int | float]:
    unpinned = replace(kind, only="")
    fields: dict[str, str | bytes | int | float | None] = {
        "description": args.description,
        "type": args.task_type,
        "priority": args.priority,
        "rank": args.priority.rank,
        "kind": kind.id,
        "kind_spec": kind.spec,
        "open_kind": unpinned.id,
        "open_kind_spec": unpinned.spec,
        "submitter": caller.agent,
        "max_retries": args.max_retries,
        "lease_seconds": args.lease_seconds,
        "claim_seconds": settings.tasks.claim_seconds,
        "depends_on": SEPARATOR.join(args.depends_on or ()) or None,
        "results_of": SEPARATOR.join(results_of) or None,
        "deadline": None if deadline is None else to_redis(deadline),
        "payload": validation.check_json(args.payload, "payload", settings.tasks.payload_bytes),
    }
    return [part for name, value in fields.items() if value is not None for part in (name, value)]


def _idempotency(args: DistributeArguments) -> dict[str, Any] | None:
    if args.idempotency_key is None:
        return None
    text = json.dumps(args.model_dump(exclude={"idempotency_key"}), sort_keys=True, default=list)
    return {"payload": hashlib.sha256(text.encode()).hexdigest(), "ttl": _IDEMPOTENCY_SECONDS}


def _raise_for(answer: dict[str, Any], args: DistributeArguments, settings: Settings) -> None:
    raise_for_limit(answer["status"], settings)
    match answer["status"]:
        case "idempotency_conflict":
            message = "this idempotency_key was used for another task within the last day"
            raise Conflict(message, hint="use a new key for a new task")
        case "unknown_agent":
            raise _unknown_agent(args.assign_to or "")
        case "unknown_dependency":
            raise no_task(answer["id"])
        case "ended_dependency":
            message = f"task {answer['id']} is {answer['state']}; no task can depend on it"
            raise Conflict(message, hint="requeue it first")
        case "past_deadline":
            raise InvalidArgument("the deadline is in the past", hint="send a later one, or none")
        case _:
            return


def _unknown_agent(name: str) -> NotFound:
    return NotFound(f"no agent {echo(name)} is registered here", hint="see list_agents")


def _why(state: str, kind: TaskKind, ranked: Sequence[Suited], assigned: str | None) -> Why:
    if state == TaskState.WAITING:
        reason = "it waits for the tasks that it depends on"
    elif assigned:
        others = f" of {len(ranked)} able agents" if len(ranked) > 1 else ", the only able agent"
        reason = f"assigned to {assigned}, the best with room{others}"
    elif kind.only:
        reason = f"only {kind.only} gets it, when it is alive, able to do it, not draining and has room"
    elif ranked:
        reason = (
            f"all {len(ranked)} able agents are busy; the first with room gets it"
            if len(ranked) > 1
            else "the only able agent is busy; it gets it when it has room"
        )
    else:
        window = f"a context window of {kind.window}" if kind.window else ""
        demands = ", ".join(filter(None, [*map(word, kind.capabilities), window]))
        reason = f"no living agent{f' with {demands}' if demands else ''} is registered; it goes out when one is"
    return Why(reason=reason, considered=list(ranked[:_MAX_CONSIDERED]))


async def _similar(service: TaskServices, caller: Caller, vector: Matrix | None, model: Model) -> list[SimilarTask]:
    """Find similar open tasks. This is advice: a failure never fails the submission."""
    scored: list[tuple[float, Task]] = []
    if vector is not None:
        with suppress(MemoryServiceError):
            scored = await _nearest(service, caller, vector, model)
    return [
        SimilarTask(
            task_id=task.id,
            score=round(score, 4),
            state=task.state,
            submitted_by=task.submitter,
            description=task.description[:_SNIPPET],
        )
        for score, task in sorted(scored, key=lambda pair: (-pair[0], -pair[1].created_at))[:_MAX_SIMILAR]
        if score >= service.settings.tasks.similar_from and not task.has_ended
    ]


async def _nearest(service: TaskServices, caller: Caller, vector: Matrix, model: Model) -> list[tuple[float, Task]]:
    """Find the visible open tasks nearest to a vector, with their cosines.

    Hidden tasks are among the results of a search, so it widens until they cannot have displaced a visible one.
    """
    keys, k = Keys(caller.namespace), 2 * _MAX_SIMILAR
    search = partial(
        queries.near_tasks,
        keys=keys,
        vector=to_stored(vector, model),
        model=model,
        timeout_ms=service.settings.search_timeout_ms,
    )
    while True:
        ids = await service.namespaces.search(caller.namespace, partial(search, k=k))
        rows = await service.backend.read(partial(load_vectors, keys=keys, task_ids=ids, model=model))
        pairs = zip(ids, rows, strict=True)
        scores = {task_id: float(from_stored(row, len(vector)) @ vector) for task_id, row in pairs if row}
        tasks = await visible_tasks(service.backend, caller, list(scores))
        found = sorted(((scores[task.id], task) for task in tasks), key=lambda pair: -pair[0])
        furthest = min(scores.values(), default=0.0)
        is_complete = len(ids) < k or (len(found) >= _MAX_SIMILAR and found[_MAX_SIMILAR - 1][0] > furthest + _ROUNDING)
        if is_complete or furthest < service.settings.tasks.similar_from or k >= _MAX_COMPARED:
            return found
        k *= 4
