"""Records of registered agents: capabilities, status and load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from memory_core.records import owners
from memory_core.records.authority_codes import AuthorityCodes
from memory_core.records.damage import execute, or_none
from memory_core.records.keys import Keys
from memory_core.records.model import Model
from memory_core.records.names import split_labels
from memory_core.records.task_kind import TaskKind
from memory_core.redis_client import Client
from memory_core.slices import slices

if TYPE_CHECKING:
    from memory_core.records.vectors import Matrix


class AgentType(StrEnum):
    """The product that an agent is."""

    CLAUDE = "claude"
    GEMINI = "gemini"
    VSCODE = "vscode"
    RUST_LLM = "rust_llm"
    LOCAL_LLM = "local_llm"
    CUSTOM = "custom"


class AgentStatus(StrEnum):
    """Reported by the agent; only the sweeper sets `dead`. A draining agent finishes and takes no new tasks."""

    ACTIVE = "active"
    BUSY = "busy"
    IDLE = "idle"
    DRAINING = "draining"
    DEAD = "dead"


@dataclass(frozen=True, slots=True)
class TrackRecord:
    """An agent's results for one type of task."""

    done: int = 0
    failed: int = 0
    milliseconds: int = 0

    @property
    def mean_ms(self) -> float | None:
        """Mean duration of a completed task in milliseconds."""
        return self.milliseconds / self.done if self.done else None


@dataclass(frozen=True, slots=True)
class Agent:
    """One registered agent. Times are epoch seconds; `open_tasks` counts assigned and leased ones."""

    name: str
    type: AgentType
    capabilities: tuple[str, ...]
    context_window: int
    max_tasks: int
    heartbeat_seconds: float
    description: str
    status: AgentStatus
    registered_at: float
    last_seen: float
    deadline: float
    open_tasks: int = 0
    leased_tasks: int = 0
    load: float | None = None
    records: dict[str, TrackRecord] = field(default_factory=dict[str, TrackRecord])
    vectors: Matrix | None = None  # unit vectors of its description and latest completed tasks, shape (n, dimension)

    def is_alive(self, now: float) -> bool:
        return self.status is not AgentStatus.DEAD and self.deadline > now

    def is_able(self, kind: TaskKind) -> bool:
        """Whether it meets the requirements of a kind of task."""
        return (
            kind.only in {"", self.name}
            and self.context_window >= kind.window
            and set(kind.capabilities) <= set(self.capabilities)
        )

    @property
    def room(self) -> int:
        return max(self.max_tasks - self.open_tasks, 0)


FIELDS = (
    "registered_at", "type", "capabilities", "context_window", "max_tasks", "heartbeat_seconds", "description",
    "status", "last_seen", "load", "profile",
)  # fmt: skip
_COMMANDS = 5


async def held_since(client: Client, keys: Keys, name: str, integrity: AuthorityCodes) -> float:
    """Return when the last holder of a name left it, in epoch seconds: what is older is not the present one's.

    Raises:
        Tampered: the owner id of the name, or this time, fails its check.
    """
    row = await client.hmget(keys.agent(name), owners.FIELDS)
    return float(owners.read(integrity, keys.namespace, name, row).since or 0)


async def load_agent(client: Client, keys: Keys, name: str) -> Agent | None:
    """Load one registered agent; None for any other name."""
    found = await load_agents(client, keys, [name])
    return found[0] if found else None


async def load_agents(
    client: Client, keys: Keys, names: Sequence[str] | None = None, *, model: Model | None = None
) -> list[Agent]:
    """Load some or all registered agents, in two round trips; with `model` its vectors too. Skips damaged records."""
    if names is None:
        names = [name.decode(errors="replace") for name in await client.zrange(keys.agents, 0, -1)]
    if not names:
        return []
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hmget(keys.agent(name), FIELDS)
        pipe.zscore(keys.agents, name)
        pipe.xlen(keys.inbox(name))
        pipe.scard(keys.held(name))
        pipe.hgetall(keys.performance(name))
        if model:
            pipe.lrange(keys.did(name), 0, -1)
    rows = await execute(pipe)
    step = _COMMANDS + bool(model)
    parts = zip(names, slices(rows, step), strict=True)
    agents = [or_none(lambda name=name, row=row: _parse(name, list(row), model)) for name, row in parts]
    return [agent for agent in agents if agent]


def _parse(name: str, row: list[Any], model: Model | None) -> Agent | None:
    values, deadline, open_tasks, held, performance, *did = row
    found = dict(zip(FIELDS, values, strict=True))
    if found["registered_at"] is None:
        return None
    profile = found.pop("profile")
    text = {key: value.decode() for key, value in found.items() if value is not None}
    vectors = [part for part in [profile, *(did[0] if did else [])] if part]
    return Agent(
        name=name,
        type=AgentType(text["type"]),
        capabilities=split_labels(text.get("capabilities")),
        context_window=int(text["context_window"]),
        max_tasks=int(text["max_tasks"]),
        heartbeat_seconds=float(text["heartbeat_seconds"]),
        description=text.get("description", ""),
        status=AgentStatus(text["status"]),
        registered_at=float(text["registered_at"]),
        last_seen=float(text["last_seen"]),
        deadline=float(deadline or 0),
        open_tasks=int(open_tasks),
        leased_tasks=int(held),
        load=float(text["load"]) if "load" in text else None,
        records=_records(performance),
        vectors=_stack(vectors, model),
    )


def _records(performance: dict[bytes, bytes]) -> dict[str, TrackRecord]:
    counts: dict[str, dict[str, int]] = {}
    for key, value in performance.items():
        what, _, task_type = key.decode().partition(":")
        counts.setdefault(task_type, {})[what] = int(value)
    return {
        task_type: TrackRecord(found.get("done", 0), found.get("failed", 0), found.get("ms", 0))
        for task_type, found in counts.items()
    }


def profile_vector(model: Model, vector: bytes) -> bytes:
    """Prefix a vector with the field of its model, as agents' vectors are stored."""
    return f"{model.field}\0".encode() + vector


def _stack(vectors: list[bytes], model: Model | None) -> Matrix | None:
    import numpy as np  # slow to import, and tool schemas need this module

    from memory_core.records.vectors import from_stored

    if model is None:
        return None
    usable: list[Matrix] = []
    for stored in (replace(model, half=half) for half in (True, False)):  # older ones keep the format of their time
        head = profile_vector(stored, b"")
        found = [vector[len(head) :] for vector in vectors if vector.startswith(head)]
        usable += [from_stored(one, model.dimension) for one in found if len(one) == stored.vector_bytes]
    return np.stack(usable) if usable else None
