"""The tools that hand work to able and free agents."""

from __future__ import annotations

from memory_server.contract import task_arguments as arguments_of
from memory_server.contract.tasks import DistributeAnswer, PendingAnswer, TaskAnswer, TaskListAnswer, TaskStateAnswer
from memory_server.engine.request import RequestContext
from memory_server.mcp.tools.toolkit import StrictTool, make_tool
from memory_server.runtime import Runtime


def task_tools(runtime: Runtime) -> list[StrictTool]:
    """Make the tools over one runtime."""

    async def distribute_task(request: RequestContext, args: arguments_of.DistributeArguments) -> DistributeAnswer:
        """Hand work to the best able agent, or queue it until one is free; the answer says why."""
        from memory_server.tasks import submit

        return await submit.distribute_task(await runtime.service(), request, args)

    async def get_pending_tasks(request: RequestContext, args: arguments_of.PendingArguments) -> PendingAnswer:
        """Take your next tasks, each with a lease_token, earlier failures and the memories that bear on it."""
        from memory_server.tasks import leases

        return await leases.get_pending_tasks(await runtime.service(), request.acting_as(args.agent_id), args)

    async def complete_task(request: RequestContext, args: arguments_of.CompleteArguments) -> TaskStateAnswer:
        """Finish a task that you hold the lease of."""
        from memory_server.tasks import leases

        return await leases.complete_task(await runtime.service(), request, args)

    async def fail_task(request: RequestContext, args: arguments_of.FailArguments) -> TaskStateAnswer:
        """Give a task up; say what failed and leave a handoff for the next agent."""
        from memory_server.tasks import leases

        return await leases.fail_task(await runtime.service(), request, args)

    async def get_task(request: RequestContext, args: arguments_of.TaskArguments) -> TaskAnswer:
        """Show a task with its whole history."""
        from memory_server.tasks import lifecycle

        return await lifecycle.get_task(await runtime.service(), request.caller, args.task_id)

    async def list_tasks(request: RequestContext, args: arguments_of.ListTasksArguments) -> TaskListAnswer:
        """List the tasks that you submitted; states=dead shows the dead letters."""
        from memory_server.tasks import lifecycle

        return await lifecycle.list_tasks(await runtime.service(), request.caller, args.states or (), args.limit)

    async def cancel_task(request: RequestContext, args: arguments_of.CancelArguments) -> TaskStateAnswer:
        """Cancel a task that you submitted; whoever works on it is told."""
        from memory_server.tasks import lifecycle

        return await lifecycle.cancel_task(await runtime.service(), request, args.task_id, args.reason)

    async def requeue_task(request: RequestContext, args: arguments_of.TaskArguments) -> TaskStateAnswer:
        """Try a dead task of yours again."""
        from memory_server.tasks import lifecycle

        return await lifecycle.requeue_task(await runtime.service(), request, args.task_id)

    return [
        make_tool(distribute_task, arguments_of.DistributeArguments, scope="tasks"),
        make_tool(get_pending_tasks, arguments_of.PendingArguments, scope="tasks"),
        make_tool(complete_task, arguments_of.CompleteArguments, scope="tasks"),
        make_tool(fail_task, arguments_of.FailArguments, scope="tasks"),
        make_tool(get_task, arguments_of.TaskArguments, read_only=True),
        make_tool(list_tasks, arguments_of.ListTasksArguments, read_only=True),
        make_tool(cancel_task, arguments_of.CancelArguments, destructive=True, scope="tasks"),
        make_tool(requeue_task, arguments_of.TaskArguments, scope="tasks"),
    ]
