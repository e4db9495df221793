"""Says in words what happened in an event, with the title of its task or memory and what a grant shares.

A caller learns nothing that it could not read itself: titles come from records that it may see now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from memory_core.records.agent import load_agent
from memory_core.records.codec import unpack
from memory_core.records.damage import execute, or_none
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.task import Task, TaskState, load_tasks
from memory_core.redis_client import Client
from memory_server.contract.sharing import accepting, covered
from memory_server.contract.untrusted_text import quoted, word
from memory_server.events.entries import GRANT, MEMORY, TASK, EventEntry

_TITLE_CHARS = 60
_NAMED = 3
"""Tags or types of a grant that are named; more are counted."""
_GRANT_FIELDS = ("from", "to", "kind", "values", "permission", "note")
_TASK_OPS = {
    "leased": "{by} started {task}",
    "completed": "{by} completed {task}",
    "retrying": "{by} failed {task}; it will be tried again",
    "pending": "{task} waits for an agent",
    "dead": "{task} failed for good",
}
_OFFERED = frozenset({TaskState.WAITING, TaskState.PENDING, TaskState.RETRYING})
_MEMORY_OPS = {"embedded": "{memory} has its vector"}
_AGENT_OPS = {
    "registered": "{name} registered",
    "unregistered": "{name} left the team",
    "dead": "{name} fell silent; it keeps what it holds until the leases end",
    "alive": "{name} is back",
}
_GRANT_OPS = {
    "granted": "{giver} shared {what} with {receiver} ({permission}), grant {id}",
    "offered": "{giver} offers to share both ways: {accepting}; answer_offer {id}",
    "revoked": "{giver} took back the grant of {what} to {receiver}, grant {id}",
    "declined": "{receiver} declined {what} of {giver}, grant {id}",
    "accepted": "{receiver} accepted offer {id} and shares {what} with {giver} too",
    "expired": "the grant of {what} by {giver} to {receiver} ended, grant {id}",
}
_TRANSFER_OPS = {
    "offered": "{giver} offers its memories: {accepting}; answer_offer {id}",
    "accepted": "{receiver} accepted {what} of {giver}, offer {id}",
}


class GrantRecord(NamedTuple):
    """What a grant shares, as its two sides see it."""

    giver: str
    receiver: str
    what: str
    permission: str
    note: str
    transfer: bool


@dataclass(frozen=True, slots=True)
class Subjects:
    """The records behind some events, as far as the caller may see them."""

    agent: str
    tasks: Mapping[str, Task] = field(default_factory=dict[str, Task])
    grants: Mapping[str, GrantRecord] = field(default_factory=dict[str, GrantRecord])
    memories: Mapping[str, Record] = field(default_factory=dict[str, Record])

    def say(self, entry: EventEntry) -> str:
        """Return one sentence about an event, with the ids that the next call needs."""
        if entry.kind == TASK:
            return self._task(entry)
        if entry.kind == MEMORY:
            return self._memory(entry)
        if entry.kind == GRANT:
            return self._grant(entry)
        return _AGENT_OPS.get(entry.op, "agent {name}: {op}").format(name=self._name(entry.subject), op=word(entry.op))

    def say_match(self, entry: EventEntry, writer: str) -> str:
        """Return one sentence about a memory that matches a standing query."""
        return f"memory {entry.subject} by {self._name(entry.by or writer)} matches your question"

    def _task(self, entry: EventEntry) -> str:
        found = self.tasks.get(entry.subject)
        task = " ".join(filter(None, ["task", entry.subject, found and quoted(_title(found.description))]))
        if entry.op == "assigned":
            others = entry.to - {found.submitter} if found else entry.to
            name = self.agent if self.agent in others or not others else min(others)
            is_mine = name == self.agent and (found is None or found.state in _OFFERED)
            return f"{task} is assigned to {self._name(name)}" + (": get_pending_tasks leases it" if is_mine else "")
        if entry.op == "cancelled":
            return f"{self._name(entry.by)} cancelled {task}" if entry.by else f"{task} was cancelled"
        by = self._name(entry.by) if entry.by else "its agent"
        return _TASK_OPS.get(entry.op, "{task}: {op}").format(by=by, task=task, op=word(entry.op))

    def _memory(self, entry: EventEntry) -> str:
        found = self.memories.get(entry.subject)
        title = quoted(_title(found.content)) if found and found.content and not found.is_sensitive else None
        memory = " ".join(filter(None, ["memory", entry.subject, title]))
        by = self._name(entry.by) if entry.by else "the server"
        return _MEMORY_OPS.get(entry.op, "{by} {op} {memory}").format(by=by, memory=memory, op=word(entry.op))

    def _grant(self, entry: EventEntry) -> str:
        grant = self.grants.get(entry.subject)
        if grant is None:
            return f"grant {entry.subject} {word(entry.op)}" + (f" by {self._name(entry.by)}" if entry.by else "")
        ops = _GRANT_OPS | _TRANSFER_OPS if grant.transfer else _GRANT_OPS
        giver, receiver, what = grant.giver, grant.receiver, grant.what
        op = "expired" if entry.op == "revoked" and entry.by != giver else entry.op
        said = ops.get(op, "grant {id} of {what} by {giver} to {receiver}: {op}").format(
            op=word(entry.op),
            giver=self._name(giver),
            receiver=self._name(receiver),
            what=what,
            permission=grant.permission,
            id=entry.subject,
            accepting=accepting(
                self.agent,
                giver=giver,
                receiver=receiver,
                covers=what,
                permission=grant.permission,
                transfer=grant.transfer,
            ),
        )
        return said + (f": {quoted(_title(grant.note))}" if grant.note else "")

    def _name(self, name: str) -> str:
        return "you" if name == self.agent else name


async def load_subjects(
    client: Client, keys: Keys, agent: str, since: float, entries: Sequence[EventEntry], memories: Sequence[Record] = ()
) -> Subjects:
    """Load the tasks and grants of events that the caller may see; it took over its name at `since`."""
    tasks = await load_tasks(client, keys, _ids(entries, TASK))
    if others := [task for task in tasks if not task.is_party(agent, since)]:
        profile = await load_agent(client, keys, agent)
        able = {task.id for task in others if profile is not None and profile.is_able(task.kind)}
        tasks = [task for task in tasks if task.may_see(agent, task.id in able, since)]
    return Subjects(
        agent,
        {task.id: task for task in tasks},
        await _load_grants(client, keys, _ids(entries, GRANT)),
        {record.id: record for record in memories if not record.part},
    )


async def _load_grants(client: Client, keys: Keys, grant_ids: Sequence[str]) -> dict[str, GrantRecord]:
    pipe = client.pipeline(transaction=False)
    for grant_id in grant_ids:
        pipe.hmget(keys.grant(grant_id), _GRANT_FIELDS)
    rows = await execute(pipe) if grant_ids else []
    found = {grant_id: or_none(lambda row=row: _grant_of(row)) for grant_id, row in zip(grant_ids, rows, strict=True)}
    return {grant_id: grant for grant_id, grant in found.items() if grant}


def _grant_of(row: list[bytes | None]) -> GrantRecord | None:
    giver, receiver, kind, values, permission, note = row
    if not (giver and receiver and kind and values and permission):
        return None
    shown: list[Any] = unpack(values)
    what, transfer = _shared(kind.decode(), [str(value) for value in shown]), kind == b"o"
    return GrantRecord(giver.decode(), receiver.decode(), what, permission.decode(), (note or b"").decode(), transfer)


def _shared(kind: str, values: Sequence[str]) -> str:
    named = values[:_NAMED]
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    match kind:
        case "c":
            return covered(context=values[0])
        case "t":
            return covered(tags=named) + more
        case "y":
            return covered(types=named) + more
        case "i" if len(values) == 1:
            return f"memory {word(values[0])}"
        case "i":
            return covered(memories=len(values))
        case _:
            return covered(memories=int(values[0]))


def _ids(entries: Sequence[EventEntry], kind: str) -> list[str]:
    return list(dict.fromkeys(entry.subject for entry in entries if entry.kind == kind))


def _title(text: str) -> str:
    """Return the first words of a text."""
    line = " ".join(text[: 4 * _TITLE_CHARS].split())
    return line if len(line) <= _TITLE_CHARS else line[:_TITLE_CHARS].rsplit(" ", 1)[0] + " …"
