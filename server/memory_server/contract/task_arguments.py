"""Arguments of the task and agent tools."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from memory_core.records.agent import AgentStatus, AgentType
from memory_core.records.task import TaskPriority, TaskState
from memory_server.contract.arguments import (
    AgentId,
    AgentName,
    Arguments,
    Id,
    Ids,
    JsonObject,
    ListOf,
    MaxTokens,
    Time,
    as_json,
)
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS

Json = Annotated[Any, BeforeValidator(as_json)]
MOST_TOKENS = 1_000_000_000
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class DistributeArguments(Arguments):
    """distribute_task"""

    description: str = Field(description="clear without other context")
    task_type: str = Field(default="general", description="agents are rated by type")
    payload: JsonObject | None = None
    required_capabilities: ListOf[str] | None = Field(default=None, description="at most 16")
    priority: TaskPriority = TaskPriority.MEDIUM
    assign_to: AgentName | None = Field(default=None, description="only this agent, ever")
    min_context_window: int = Field(default=0, ge=0, le=MOST_TOKENS, description="tokens")
    depends_on: Ids | None = Field(default=None, description="task ids to complete first")
    max_retries: int = Field(default=3, ge=0, le=100)
    lease_seconds: Seconds = 1800
    deadline: Time | None = None
    idempotency_key: str | None = Field(default=None, description="same key, same task")


class PendingArguments(Arguments):
    """get_pending_tasks"""

    agent_id: AgentId = None
    claim: bool = Field(default=True, description="false: look only")
    limit: int = Field(default=1, ge=1, le=100)
    wait_seconds: float = Field(default=0, ge=0, le=300, description="for a task")
    with_memories: int = Field(default=5, ge=0, le=20)


class TaskArguments(Arguments):
    """requeue_task"""

    task_id: Id


class GetTaskArguments(TaskArguments):
    """get_task"""

    max_tokens: MaxTokens = DEFAULT_MAX_TOKENS
    cursor: Id | None = Field(default=None, description="next_cursor of the page before")


class CompleteArguments(TaskArguments):
    """complete_task"""

    lease_token: Id
    result: Json = None
    metrics: JsonObject | None = Field(default=None, description="duration_ms, tokens, …")
    store_result: bool = Field(default=False, description="also as a memory; needs scope write")


class FailArguments(TaskArguments):
    """fail_task"""

    lease_token: Id
    error: str
    retry: bool = True
    handoff: str | None = Field(default=None, description="what you did and the next agent should know")


class CancelArguments(TaskArguments):
    """cancel_task"""

    reason: str = "cancelled by its submitter"


class ListTasksArguments(Arguments):
    """list_tasks"""

    states: ListOf[TaskState] | None = None
    limit: int = Field(default=20, ge=1, le=100)
    cursor: Id | None = Field(default=None, description="next_cursor of the page before")


class RegisterArguments(Arguments):
    """register_agent"""

    agent_id: AgentId = None
    agent_type: AgentType | None = None
    capabilities: ListOf[str] | None = Field(default=None, description="skills that tasks ask for; [] clears")
    context_window: int | None = Field(default=None, ge=0, le=MOST_TOKENS, description="tokens")
    max_tasks: int | None = Field(default=None, ge=1, le=1000, description="at a time; at first 1")
    heartbeat_seconds: float | None = Field(default=None, ge=0.2, le=3600, description="longest silence; at first 600")
    description: str | None = Field(default=None, description="what you are good at")


class UnregisterArguments(Arguments):
    """unregister_agent"""

    agent_id: AgentId = None
    memories: Literal["keep", "transfer", "delete"] = Field(
        default="keep", description="keep: for an operator; transfer: offered; delete: erased"
    )
    transfer_to: AgentName | None = Field(default=None, description="must accept the offer")


class HeartbeatArguments(Arguments):
    """update_agent_heartbeat"""

    agent_id: AgentId = None
    status: AgentStatus | None = Field(default=None, description="draining: take no more")
    load: float | None = Field(default=None, ge=0, le=1)
    lease_tokens: Ids | None = Field(default=None, description="to renew")
    metrics: JsonObject | None = Field(default=None, description="progress, for the next agent if you stop")


class ListAgentsArguments(Arguments):
    """list_agents"""

    agent_types: ListOf[AgentType] | None = None
    capabilities: ListOf[str] | None = Field(default=None, description="all of these")
    alive_only: bool = True
    cursor: Id | None = Field(default=None, description="next_cursor of the page before")
