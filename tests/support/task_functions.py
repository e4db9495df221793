"""Calls the Functions of tasks and agents without a server; base of the mutation tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.names import SEPARATOR
from memory_core.records.task import TaskPriority
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import to_redis
from memory_core.redis_client import Client
from memory_core.store import functions

Answer = dict[str, Any]
AT_ONCE = 1e-6
"""A time in seconds that is over by the next call."""
KEEP = 1000


class TaskNamespace:
    """One namespace of tasks, used through the Functions."""

    def __init__(self, client: Client, namespace: str) -> None:
        self.client, self.keys = client, Keys(namespace)

    async def call(self, function: str, keys: list[str] | None = None, **request: Any) -> Answer:
        """Call one Function of the loaded library."""
        names = keys or [self.keys.leases]
        return await functions.call(self.client, function, names, prefix=self.keys.prefix, keep=KEEP, **request)

    async def register(self, *agents: str, capacity: int = 10, able: Sequence[str] = (), window: int = 0) -> None:
        """Register live agents."""
        fields = {
            "type": "custom",
            "capabilities": SEPARATOR.join(able),
            "context_window": window,
            "max_tasks": capacity,
            "heartbeat_seconds": 60,
        }
        for name in agents:
            await self.call(
                "rm1_agent_register",
                [self.keys.agent(name)],
                agent=name,
                candidate=new_id(),
                fields=[part for pair in fields.items() for part in pair],
                audit=_audit(name),
            )

    async def submit(self, **options: Any) -> str:
        """Submit a task and return its id."""
        answer = await self.try_to_submit(**options)
        assert answer["status"] == "submitted", answer
        return answer["id"]

    async def try_to_submit(
        self,
        *,
        by: str = "lead",
        to: Sequence[str] = (),
        needs: Sequence[str] = (),
        window: int = 0,
        only: str = "",
        after: Sequence[str] = (),
        priority: TaskPriority = TaskPriority.MEDIUM,
        retries: int = 3,
        lease: float = 60,
        claim: float = 60,
        deadline: float | None = None,
        quota: int = 1000,
        key: tuple[str, str] | None = None,
        task_id: str = "",
    ) -> Answer:
        """Submit a task and return the whole answer."""
        kind, free, task_id = TaskKind(tuple(needs), window, only), TaskKind(tuple(needs), window), task_id or new_id()
        fields: dict[str, Any] = {
            "description": "work",
            "type": "general",
            "priority": priority,
            "rank": priority.rank,
            "kind": kind.id,
            "kind_spec": kind.spec,
            "open_kind": free.id,
            "open_kind_spec": free.spec,
            "submitter": by,
            "max_retries": retries,
            "lease_seconds": lease,
            "claim_seconds": claim,
            "depends_on": SEPARATOR.join(after),
        } | ({} if deadline is None else {"deadline": to_redis(deadline)})
        return await self.call(
            "rm1_task_submit",
            [self.keys.leases, self.keys.idempotency(by, key[0] if key else "")],
            id=task_id,
            fields=[part for pair in fields.items() for part in pair],
            depends_on=list(after),
            only=only,
            deadline=deadline,
            vector=None,
            candidates=list(to),
            quota=quota,
            idempotency={"payload": key[1], "ttl": 100} if key else None,
            audit=_audit(by),
        )

    async def claim(self, agent: str, count: int = 1, call: str = "", session: str = "") -> list[Answer]:
        """Lease tasks."""
        secrets = [new_id() for _ in range(count)]
        request: dict[str, Any] = {"call": call or new_id(), "secrets": secrets, "session": session}
        return (await self.call("rm1_task_claim", agent=agent, **request))["tasks"]

    async def hands(self, agent: str, session: str) -> tuple[list[str], list[str], list[str]]:
        """Return the tokens that a session takes over and has, and the tasks of other live sessions."""
        request: dict[str, Any] = {"call": new_id(), "secrets": [], "resumes": [new_id()], "session": session}
        answer = await self.call("rm1_task_claim", agent=agent, **request)
        tokens = [[held["lease_token"] for held in answer[part]] for part in ("tasks", "mine")]
        return tokens[0], tokens[1], [held["id"] for held in answer["elsewhere"]]

    async def seen(self, agent: str, session: str) -> list[float]:
        """Record a call of a session, and return after how many seconds the next one is recorded."""
        items = [{"agent": agent, "session": session, "ago": 0}]
        return [float(pause) for pause in (await self.call("rm1_agent_seen", items=items))["pauses"]]

    async def end_session(self, agent: str, session: str) -> None:
        """End a session of an agent."""
        await self.call("rm1_agent_session_ended", [self.keys.agent(agent)], agent=agent, session=session)

    async def lease(self, agent: str) -> str:
        """Lease the only task and return its token."""
        tasks = await self.claim(agent)
        assert len(tasks) == 1, f"{agent} got {len(tasks)} tasks"
        return tasks[0]["lease_token"]

    async def complete(self, agent: str, token: str, call: str = "") -> str:
        """Complete the task of a token and return the status."""
        call = call or new_id()
        fields = ["last_call", call]
        answer = await self._end("rm1_task_complete", agent, token, call, fields=fields, duration_ms=1)
        return answer["status"]

    async def fail(
        self, agent: str, token: str, *, call: str = "", retry: bool = True, pause: float = AT_ONCE
    ) -> Answer:
        """Report a failure; the pause is without jitter."""
        pauses = {"backoff": pause, "backoff_most": 1000, "jitter": 1}
        return await self._end("rm1_task_fail", agent, token, call or new_id(), error="no", retry=retry, **pauses)

    async def _end(self, function: str, agent: str, token: str, call: str, **request: Any) -> Answer:
        task_id = token.partition(".")[0]
        return await self.call(
            function, id=task_id, agent=agent, token=token, call=call, audit=_audit(agent), **request
        )

    async def heartbeat(self, agent: str, *tokens: str) -> Answer:
        """Send a heartbeat and renew leases."""
        return await self.call(
            "rm1_agent_heartbeat", [self.keys.agent(agent)], agent=agent, fields=[], tokens=list(tokens)
        )

    async def declare_dead(self, agent: str) -> Answer:
        """Declare an agent dead if it is."""
        return await self.call("rm1_agent_lost", [self.keys.agent(agent)], agent=agent, reason="silent")

    async def leave(self, agent: str) -> None:
        """Unregister an agent, with its tasks."""
        keys = [self.keys.agent(agent)]
        answer = await self.call(
            "rm1_agent_unregister", keys, agent=agent, memories="keep", known=[], proofs=None, audit=_audit(agent)
        )
        assert answer["status"] == "unregistered"
        for function in ("rm1_agent_release", "rm1_agent_reserved"):
            while (await self.call(function, keys, agent=agent, reason="it left"))["more"]:
                pass

    async def cancel(self, task_id: str, by: str = "lead") -> str:
        """Cancel a task and return the status."""
        answer = await self.call("rm1_task_cancel", id=task_id, agent=by, admin=False, reason="no", audit=_audit(by))
        return answer["status"]

    async def requeue(self, task_id: str, by: str = "lead", *, quota: int = 1000, own_quota: int = 0) -> Answer:
        """Requeue a dead task."""
        limits = {"quota": quota, "own_quota": own_quota}
        request: dict[str, Any] = {"id": task_id, "agent": by, "admin": False, "audit": _audit(by), **limits}
        return await self.call("rm1_task_requeue", **request)

    async def assign(self, task_id: str, *candidates: str) -> Answer:
        """Assign a queued task to the first eligible candidate."""
        return await self.call("rm1_task_assign", items=[{"id": task_id, "candidates": list(candidates)}])

    async def sweep(self) -> None:
        """Remove what is damaged, and sweep until nothing is due."""
        await self.call("rm1_tidy")
        rounds = 1
        while (await self.call("rm1_task_sweep"))["more"]:
            rounds += 1
            assert rounds < 100, "the sweep does not end"

    async def field(self, task_id: str, name: str) -> str | None:
        """Read a field of a task."""
        value = await self.client.hget(self.keys.task(task_id), name)
        return None if value is None else value.decode()

    async def state(self, task_id: str) -> str | None:
        """Read the state of a task."""
        return await self.field(task_id, "state")

    async def held_counts(self, agent: str) -> dict[str, int]:
        """Count an agent's leases, unclaimed and held tasks, and inbox entries."""
        keys, client = self.keys, self.client
        return {
            "leases": await client.zcard(keys.leases),
            "unclaimed": await client.zcard(keys.unclaimed),
            "held": await client.scard(keys.held(agent)),
            "inbox": await client.xlen(keys.inbox(agent)),
        }


def _audit(who: str) -> Answer:
    return {"who": who, "op": "test", "ids": []}
