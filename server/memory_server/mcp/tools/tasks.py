"""The tools that submit, claim and finish tasks."""

from __future__ import annotations

from memory_core.records.authority import Effect
from memory_server.contract import task_arguments as arguments_of
from memory_server.contract.task_outcomes import TaskStateAnswer
from memory_server.contract.tasks import DistributeAnswer, PendingAnswer, TaskAnswer, TaskListAnswer
from memory_server.engine.request_context import RequestContext
from memory_server.mcp import lazy
from memory_server.mcp.tools.tool_factory import StrictTool, make_tool
from memory_server.runtime import Runtime


def task_tools(runtime: Runtime) -> list[StrictTool]:
    async def distribute_task(request: RequestContext, args: arguments_of.DistributeArguments) -> DistributeAnswer:
        """Hand work to the best able agent, or queue it until one is free."""
        return await lazy.submit.distribute_task(await runtime.service(), request, args)

    async def get_pending_tasks(request: RequestContext, args: arguments_of.PendingArguments) -> PendingAnswer:
        """Take work when you are free: your next task, with its lease_token, earlier failures and relevant memories."""
        return await lazy.leases.get_pending_tasks(await runtime.service(), request.acting_as(args.agent_id), args)

    async def complete_task(request: RequestContext, args: arguments_of.CompleteArguments) -> TaskStateAnswer:
        """Report a task of yours as done, with its result."""
        return await lazy.leases.complete_task(await runtime.service(), request, args)

    async def fail_task(request: RequestContext, args: arguments_of.FailArguments) -> TaskStateAnswer:
        """Give up a task that you cannot finish, so that it is tried again."""
        return await lazy.leases.fail_task(await runtime.service(), request, args)

    async def get_task(request: RequestContext, args: arguments_of.GetTaskArguments) -> TaskAnswer:
        """Show a task with its result and history, to see how far it is or why it failed."""
        return await lazy.lifecycle.get_task(
            await runtime.service(), request.caller, args.task_id, max_tokens=args.max_tokens, cursor=args.cursor
        )

    async def list_tasks(request: RequestContext, args: arguments_of.ListTasksArguments) -> TaskListAnswer:
        """List the tasks that you submitted, hold or did, newest first."""
        return await lazy.lifecycle.list_tasks(await runtime.service(), request.caller, args)

    async def cancel_task(request: RequestContext, args: arguments_of.CancelArguments) -> TaskStateAnswer:
        """Cancel a task that you submitted and no longer need."""
        return await lazy.lifecycle.cancel_task(await runtime.service(), request, args.task_id, args.reason)

    async def requeue_task(request: RequestContext, args: arguments_of.TaskArguments) -> TaskStateAnswer:
        """Retry a dead task that you submitted, once its cause is fixed."""
        return await lazy.lifecycle.requeue_task(await runtime.service(), request, args.task_id)

    return [
        make_tool(distribute_task, arguments_of.DistributeArguments, effects=[Effect.SUBMIT_TASKS]),
        make_tool(get_pending_tasks, arguments_of.PendingArguments, effects=[Effect.WORK_ON_TASKS]),
        make_tool(
            complete_task,
            arguments_of.CompleteArguments,
            effects=[Effect.WORK_ON_TASKS],
            effects_of=lambda args: [Effect.WRITE_MEMORIES] if args.store_result else [],
        ),
        make_tool(fail_task, arguments_of.FailArguments, effects=[Effect.WORK_ON_TASKS]),
        make_tool(get_task, arguments_of.GetTaskArguments, effects=[Effect.SEE_TASKS], read_only=True),
        make_tool(list_tasks, arguments_of.ListTasksArguments, effects=[Effect.SEE_OWN], read_only=True),
        make_tool(cancel_task, arguments_of.CancelArguments, effects=[Effect.CHANGE_TASKS], destructive=True),
        make_tool(requeue_task, arguments_of.TaskArguments, effects=[Effect.CHANGE_TASKS]),
    ]
