"""`redis-memory tasks`: what agents have in hand, and the dead letters, seen and put right from a shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from memory_core.records.task import TaskState
from memory_server.cli.console import AsJson, Config, DataDir, Namespace, carry_out, load_settings, operator

if TYPE_CHECKING:
    from memory_core.settings.settings import Settings
    from memory_server.contract.tasks import TaskStateAnswer
    from memory_server.engine.request import RequestContext
    from memory_server.service import Service

tasks = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help="Look at tasks, revive and end them.")
TaskId = Annotated[str, typer.Argument(help="Id of the task, as `list` gives it.")]


@tasks.command("list")
def listing(
    state: Annotated[list[TaskState] | None, typer.Option(help="Only in this state; may be repeated.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only what this agent submitted or has had.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Most tasks.")] = 50,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """List tasks of all agents, newest first; `--state dead` lists the dead letters."""
    from memory_server.cli import printing
    from memory_server.operations.admin_view import all_tasks

    settings = load_settings(config, data_dir, namespace)
    caller = operator(settings.namespace)

    answer = carry_out(
        settings,
        caller,
        "list_tasks",
        lambda service, _: all_tasks(service.backend, caller, states=state or (), agent=agent, limit=limit),
    )
    if as_json:
        return printing.emit_answer(answer)
    rows = (
        (t.task_id, t.state, t.priority, t.submitted_by, t.assigned_to, attempt, t.error, t.description)
        for t in answer.tasks
        for attempt in [f"{t.attempt}/{t.max_retries + 1}"]
    )
    printing.table(("task", "state", "priority", "by", "with", "attempt", "error", "description"), rows)
    return None


@tasks.command()
def show(
    task_id: TaskId,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Show one task with its whole history."""
    from memory_server.cli import printing
    from memory_server.tasks.lifecycle import get_task

    settings = load_settings(config, data_dir, namespace)
    caller = operator(settings.namespace)

    answer = carry_out(
        settings, caller, "get_task", lambda service, _: get_task(service, caller, task_id), ids=[task_id]
    )
    if as_json:
        return printing.emit_answer(answer)
    printing.pairs((name, value) for name, value in answer.task.model_dump(mode="json").items() if value)
    rows = ((e.at, e.op, e.agent or "", e.attempt or "", e.error or e.handoff or "") for e in answer.history)
    printing.table(("at", "what", "agent", "attempt", "error or handoff"), rows)
    return None


@tasks.command()
def requeue(
    task_id: TaskId,
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """Give a dead task a new life with all its attempts."""
    from memory_server.tasks.lifecycle import requeue_task

    settings = load_settings(config, data_dir, namespace)
    _change(
        settings, as_json, "requeue_task", task_id, lambda service, request: requeue_task(service, request, task_id)
    )


@tasks.command()
def cancel(
    task_id: TaskId,
    reason: Annotated[str, typer.Option(help="Why; whoever works on it is told.")] = "cancelled at the console",
    namespace: Namespace = None,
    as_json: AsJson = False,
    config: Config = None,
    data_dir: DataDir = None,
) -> None:
    """End an open task, whoever has it."""
    from memory_server.tasks.lifecycle import cancel_task

    settings = load_settings(config, data_dir, namespace)
    _change(
        settings,
        as_json,
        "cancel_task",
        task_id,
        lambda service, request: cancel_task(service, request, task_id, reason),
    )


def _change(
    settings: Settings,
    as_json: bool,
    op: str,
    task_id: str,
    use_case: Callable[[Service, RequestContext], Awaitable[TaskStateAnswer]],
) -> None:
    from memory_server.cli import printing

    caller = operator(settings.namespace)

    answer = carry_out(settings, caller, op, use_case, ids=[task_id])
    if as_json:
        printing.emit_answer(answer)
    else:
        typer.echo(f"Task {answer.task_id} is {answer.state}.")
