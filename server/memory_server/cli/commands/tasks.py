"""`redis-memory tasks`: lists, requeues and cancels tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.records.task import TaskState
from memory_server.cli import lazy
from memory_server.cli.console import Console, common_options, group

if TYPE_CHECKING:
    from memory_server.contract.task_outcomes import TaskStateAnswer
    from memory_server.contract.tasks import TaskAnswer

tasks = group("tasks", "List, requeue and cancel tasks.")
TaskId = Annotated[str, typer.Argument(help="Id of the task, from `list`.")]


@tasks.command("list")
@common_options()
def list_tasks(
    console: Console,
    state: Annotated[list[TaskState] | None, typer.Option(help="Only in this state; repeatable.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only tasks that this agent submitted or worked on.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Maximum number of tasks.")] = 50,
) -> None:
    """List tasks of all agents, newest first. `--state dead` lists the dead tasks."""
    answer = console.as_operator(
        "list_tasks",
        lambda service, request: lazy.admin_view.all_tasks(
            service.backend, request.caller, states=state or (), agent=agent and console.agent_name(agent), limit=limit
        ),
    )
    rows = (
        (t.task_id, t.state, t.priority, t.submitted_by, t.assigned_to, attempt, t.error, t.description)
        for t in answer.tasks
        for attempt in [f"{t.attempt}/{t.max_retries + 1}"]
    )
    columns = ("task", "state", "priority", "submitter", "worker", "attempt", "error", "description")
    console.show_answer(answer, lambda: lazy.printing.table(columns, rows))


@tasks.command()
@common_options()
def show(console: Console, task_id: TaskId) -> None:
    """Show one task with its full history."""
    answer = console.as_operator(
        "get_task", lambda service, request: lazy.tasks.get_task(service, request.caller, task_id), task_id
    )
    console.show_answer(answer, lambda: _print_task(answer))


@tasks.command()
@common_options()
def requeue(console: Console, task_id: TaskId) -> None:
    """Queue a dead task again with all its attempts."""
    answer = console.as_operator(
        "requeue_task", lambda service, request: lazy.tasks.requeue_task(service, request, task_id), task_id
    )
    _show_state(console, answer)


@tasks.command()
@common_options()
def cancel(
    console: Console,
    task_id: TaskId,
    reason: Annotated[str, typer.Option(help="Reason, sent to the worker.")] = "cancelled at the console",
) -> None:
    """Cancel an open task of any agent."""
    answer = console.as_operator(
        "cancel_task", lambda service, request: lazy.tasks.cancel_task(service, request, task_id, reason), task_id
    )
    _show_state(console, answer)


def _print_task(answer: TaskAnswer) -> None:
    lazy.printing.pairs((name, value) for name, value in answer.task.model_dump(mode="json").items() if value)
    rows = ((e.at, e.op, e.agent or "", e.attempt or "", e.error or e.handoff or "") for e in answer.history)
    lazy.printing.table(("time", "event", "agent", "attempt", "error or handoff"), rows)


def _show_state(console: Console, answer: TaskStateAnswer) -> None:
    console.show_answer(answer, f"Task {answer.task_id} is {answer.state}.")
