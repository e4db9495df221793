"""Answers of the agent tools."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from pydantic import BaseModel, Field

from memory_core.records.agent import Agent, AgentStatus, AgentType
from memory_core.records.times import to_iso
from memory_server.contract.answer import Answer
from memory_server.contract.tasks import PendingAnswer, cut
from memory_server.contract.untrusted_text import counted, quoted, word

_DESCRIPTION_CHARS, _SKILL_BYTES = 200, 320
"""What a list shows of each agent."""
_BRIEF_CHARS = 300
"""Of a description in the answer to the agent that gave it."""


def brief(description: str) -> str:
    """Return the beginning of a long description."""
    return cut(description, _BRIEF_CHARS)


class AgentView(BaseModel):
    """One registered agent."""

    agent_id: str
    agent_type: AgentType
    capabilities: list[str] = []
    more_capabilities: int = Field(default=0, description="how many are left out of a list of agents")
    context_window: int
    max_tasks: int
    description: str = ""
    status: AgentStatus
    alive: bool
    open_tasks: int = Field(default=0, description="assigned to it or leased by it")
    leased_tasks: int = 0
    load: float | None = Field(default=None, description="as it says itself, 0 to 1")
    completed: int = 0
    failed: int = 0
    last_seen: str | None = None

    @classmethod
    def of(cls, agent: Agent, now: float) -> AgentView:
        alive = agent.is_alive(now)
        return cls(
            agent_id=agent.name,
            agent_type=agent.type,
            capabilities=list(agent.capabilities),
            context_window=agent.context_window,
            max_tasks=agent.max_tasks,
            description=agent.description,
            status=agent.status if alive else AgentStatus.DEAD,
            alive=alive,
            open_tasks=agent.open_tasks,
            leased_tasks=agent.leased_tasks,
            load=agent.load,
            completed=sum(record.done for record in agent.records.values()),
            failed=sum(record.failed for record in agent.records.values()),
            last_seen=to_iso(agent.last_seen),
        )

    def brief(self) -> AgentView:
        """Return the view for a list of agents: the beginning of its description and its first capabilities."""
        lengths = accumulate(len(label.encode()) for label in self.capabilities)
        listed = max(sum(length <= _SKILL_BYTES for length in lengths), min(len(self.capabilities), 1))
        return self.model_copy(
            update={
                "description": cut(self.description, _DESCRIPTION_CHARS),
                "capabilities": self.capabilities[:listed],
                "more_capabilities": len(self.capabilities) - listed,
            }
        )

    def line(self) -> str:
        more = f" and {self.more_capabilities} more" if self.more_capabilities else ""
        skills = f", can {', '.join(map(word, self.capabilities))}{more}" if self.capabilities else ""
        tasks = f"{self.open_tasks} of {counted(self.max_tasks, 'task')}"
        return f"{self.agent_id} ({self.agent_type}) {self.status}, {tasks}{skills}"


class Change(BaseModel):
    """The old and the new value of a field."""

    old: Any
    new: Any

    @classmethod
    def of(cls, old: Any, new: Any) -> Change:
        """Build a change with the beginnings of long texts."""
        old, new = (brief(value) if isinstance(value, str) else value for value in (old, new))
        return cls(old=old, new=new)


class RegisterAnswer(Answer):
    """A registered agent, and how it stays alive."""

    agent: AgentView
    again: bool = Field(default=False, description="true: it was registered already; omitted fields kept their values")
    changed: dict[str, Change] = Field(
        default_factory=dict[str, Change], description="what this call changed, if again"
    )
    pending_tasks: int = Field(default=0, description="tasks that wait for it now")
    work: PendingAnswer | None = Field(default=None, description="what it holds, from this session or an earlier one")
    heartbeat_seconds: float
    keep_alive: str

    def lines(self) -> list[str]:
        work = [] if self.work is None else self.work.lines()
        return [f"{self._what()} {self.agent.line()}.", self._waiting(), self.keep_alive, *work]

    def _what(self) -> str:
        if not self.again:
            return "Registered:"
        changes = [f"{name} {_shown(one.old)} → {_shown(one.new)}" for name, one in self.changed.items()]
        return f"Registered already; {', '.join(changes) or 'nothing changed'}:"

    def _waiting(self) -> str:
        if not self.pending_tasks:
            return "No task waits for you; get_pending_tasks with wait_seconds waits for one."
        waits = "waits" if self.pending_tasks == 1 else "wait"
        return f"{counted(self.pending_tasks, 'task')} {waits} for you: call get_pending_tasks."


def _shown(value: Any) -> str:
    """Return a value bare if it is a number or one plain word; else quoted."""
    return word(str(value)) if isinstance(value, int | float | str) else quoted(value)


class UnregisterAnswer(Answer):
    """What happened to the tasks, memories and grants of an agent that left."""

    tasks_reassigned: int
    tasks_ended: int = Field(
        description="those with assign_to, and those without attempts left; their submitters are told"
    )
    memories_affected: int
    grants_revoked: int
    offer_id: str | None = Field(default=None, description="of a transfer; the memories are kept until it is accepted")

    def lines(self) -> list[str]:
        offer = f" Offer {self.offer_id} waits for its receiver." if self.offer_id else ""
        return [
            f"Unregistered: {counted(self.tasks_reassigned, 'task')} reassigned, {self.tasks_ended} ended, "
            f"{counted(self.memories_affected, 'memory')} affected, "
            f"{counted(self.grants_revoked, 'grant')} revoked.{offer}"
        ]


class HeartbeatAnswer(Answer):
    """The leases that a heartbeat renewed, and what waits."""

    leases_renewed: dict[str, str] = Field(description="task id: until when")
    leases_lost: list[str] = Field(description="ids of tasks that are yours no more; stop working on them")
    pending_tasks: int
    unread_events: int | None = Field(default=None, description="none: your token may not see them")

    def lines(self) -> list[str]:
        lost = f"LOST: {', '.join(map(word, self.leases_lost))}. " if self.leases_lost else ""
        events = "" if self.unread_events is None else f", {counted(self.unread_events, 'unread event')}"
        renewed = counted(len(self.leases_renewed), "lease")
        return [f"{lost}{renewed} renewed, {counted(self.pending_tasks, 'task waits', 'tasks wait')}{events}."]


class AgentAnswer(Answer):
    """One registered agent."""

    agent: AgentView

    def lines(self) -> list[str]:
        return [self.agent.line()]


class AgentListAnswer(Answer):
    """Registered agents by name."""

    has_own_limit = True

    agents: list[AgentView]
    next_cursor: str | None = None
    total: int = 0

    def lines(self) -> list[str]:
        more = [f"… and more: cursor={self.next_cursor}"] if self.next_cursor else []
        agents = counted(self.total if more else len(self.agents), "agent")
        of_all = f"{len(self.agents)} of {agents}." if more else f"{agents}."
        return [of_all, *(agent.line() for agent in self.agents), *more]
