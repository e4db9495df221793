"""Results of tasks: stored as memories that the team can read, and shown to the tasks that depend on them.

The submitter reads a stored result. The agent that gets a dependent task reads it too, if whoever submitted that task
could see the result.
"""

from __future__ import annotations

from contextlib import suppress

from memory_core.errors import MemoryServiceError
from memory_core.records.authority import Effect
from memory_core.records.keys import Keys
from memory_core.records.memory import MemoryType, Visibility
from memory_core.records.task import Task, load_tasks
from memory_server.contract.arguments import StoreArguments
from memory_server.contract.task_arguments import CompleteArguments
from memory_server.contract.tasks import Predecessor, as_text
from memory_server.engine.principals import issue_owner, read_owners
from memory_server.engine.request_context import RequestContext
from memory_server.memories.readers import add_reader
from memory_server.memories.store import store_memory
from memory_server.tasks.lifecycle import find_task, held_since_of, is_party
from memory_server.tasks.services import TaskServices

_SHOWN = 16
_RESULT_CHARS = 8_000
"""What the results of all predecessors may take together."""
_DESCRIPTION_CHARS = 300


def result_context(task_id: str) -> str:
    """Return the context of the memory that holds a task's result."""
    return f"task:{task_id}"


async def store_result(service: TaskServices, request: RequestContext, args: CompleteArguments) -> str:
    """Store the result of a completed task as a memory of the caller that the submitter may read; return its id."""
    namespace = request.caller.namespace
    task = await find_task(service.backend, request.caller, args.task_id)
    reader = await _owner_of_submitter(service, namespace, task)
    memory = StoreArguments(
        content=f"{task.description}\n\nResult: {as_text(args.result)}",
        memory_type=MemoryType.TASK,
        visibility=Visibility.SHARED,
        context=result_context(task.id),
        idempotency_key=f"result of {task.id}",
    )
    memory_id = (await store_memory(service, request, memory, readers=[reader] if reader else [])).memory_id
    await service.backend.write(
        "rm1_task_stored",
        [Keys(namespace).leases],
        repeatable=True,
        id=task.id,
        agent=request.caller.agent,
        memory=memory_id,
    )
    return memory_id


async def _owner_of_submitter(service: TaskServices, namespace: str, task: Task) -> str | None:
    """Return the owner id of a task's submitter; None if it left its name since."""
    owners = await read_owners(service.backend, namespace, task.submitter)
    if task.created_at < float(owners.since or 0):
        return None
    if owners.current is None:
        await issue_owner(service.backend, namespace, task.submitter)
        owners = await read_owners(service.backend, namespace, task.submitter)
    return owners.current


async def load_predecessors(service: TaskServices, request: RequestContext, task: Task) -> list[Predecessor]:
    """Describe the completed tasks that a task of the caller depends on, with results where it may see them.

    The caller may then read their stored results too. A failure there never fails the claim.
    """
    caller, backend = request.caller, service.backend
    keys, ids = Keys(caller.namespace), task.depends_on[:_SHOWN]
    if not ids:
        return []
    tasks = await backend.read(lambda client: load_tasks(client, keys, ids))
    since = await held_since_of(backend, caller)
    may_read = request.may(Effect.READ_MEMORIES)
    limit = _RESULT_CHARS // max(len(tasks), 1)
    found = list[Predecessor]()
    for before in tasks:
        sees = may_read and (before.id in task.results_of or is_party(caller, before, since))
        memory_id = before.result_memory if sees and await _may_read(service, request, before) else None
        found.append(_described(before, sees, limit, memory_id))
    return found


async def _may_read(service: TaskServices, request: RequestContext, before: Task) -> bool:
    """Let the caller read the stored result of a task; return whether it may. Not an admin who acts for another agent:
    it reads as itself."""
    caller = request.caller
    if before.result_memory is None:
        return False
    with suppress(MemoryServiceError):
        owner = (await read_owners(service.backend, caller.namespace, caller.agent)).current
        context = result_context(before.id)
        return bool(owner) and await add_reader(service, caller.namespace, before.result_memory, context, owner or "")
    return False


def _described(before: Task, sees: bool, limit: int, memory_id: str | None) -> Predecessor:
    result, is_cut = before.result if sees else None, False
    if result is not None:
        text = as_text(result)
        is_cut = len(text) > limit
        result = text[:limit] if is_cut else result
    return Predecessor(
        task_id=before.id,
        state=before.state,
        description=before.description[:_DESCRIPTION_CHARS],
        by=before.holders[-1] if before.holders else None,
        result=result,
        cut=is_cut,
        memory_id=memory_id,
    )
