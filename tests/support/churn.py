"""A team in which agents come, work and leave. What it did leaves nothing in Redis that does not expire."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from memory_core.records.ids import new_id
from memory_core.records.keys import Keys
from memory_core.records.task import ENDED, TaskState
from memory_server.access.tokens import issue_token, revoke_token
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations import quarantine
from memory_server.sharing.grants import remove_expired
from memory_server.tasks.lifecycle import cancel_task
from support.embedder_fixtures import wait_until
from support.key_kinds import Held, held
from support.long_content import prose
from support.stack import Agent, Stack
from support.task_helpers import claim, complete, fail, joined, submit
from support.team_helpers import sweep

SHARES = 5
"""Grants of one round."""


class Team:
    """Agents that stay. Each round, another one comes, works with them and leaves.

    The anchor is a task that never ends, on which others depend. The worker shares the context `anchor` with the lead.
    """

    def __init__(self, stack: Stack, namespace: str, lead: Agent, worker: Agent, anchor: str) -> None:
        self.stack, self.namespace, self.lead, self.worker, self.anchor = stack, namespace, lead, worker, anchor
        self.rounds = 0
        self.own_grants: list[str] = []
        self.seen = Held()
        """What Redis held amid the rounds."""

    async def round(self) -> None:
        """Let an agent under a new name join, work with the others, and leave."""
        self.rounds += 1
        name = f"guest-{self.rounds}"
        async with joined(self.stack.server, self.namespace, name, max_tasks=9, capabilities=["polishing"]) as guest:
            memories = await self._remember(guest)
            await self._share(guest, name, memories)
            await self._work(guest, name)
            await guest.call("wait_for_events", timeout_seconds=0)
            await self._administer(name)
            await self._pass_by()
            await self._settle()
            await self._look()
            await guest.call("unregister_agent", memories="delete")
            await self._look()
        await self._clean_up()

    async def _look(self) -> None:
        self.seen.add(await held(self.stack.client, self.namespace))

    async def left(self) -> Held:
        """Return what Redis holds between two rounds."""
        await self._settle()
        await self.stack.server.service.flush_touches()
        return await held(self.stack.client, self.namespace)

    async def _remember(self, guest: Agent) -> list[str]:
        """Store memories of all kinds, in contexts of this round."""
        labels: dict[str, Any] = {"context": f"session {self.rounds}", "ttl_seconds": 600}
        kept = [await guest.store(f"Boat {self.rounds} has a red sail.", **labels, idempotency_key=new_id())]
        kept.append(await guest.store(f"The harbour fee is {self.rounds} crowns.", priority="critical"))
        await guest.store(f"The safe opens with {self.rounds}.", sensitive=True)
        await guest.store(f"{self.rounds}. {prose(30)}", **labels)
        gone = await guest.store(f"To be forgotten by {self.rounds}.", **labels)
        await self.worker.store(f"Guest {self.rounds} came.", **labels)
        await guest.call("update_memory", memory_id=kept[0], content=f"Boat {self.rounds} has a blue sail.")
        await guest.call("retrieve_memory", memory_id=kept[1])
        await guest.call("clear_memory", memory_ids=[gone])
        await self.lead.call("semantic_search", query=f"Which sail has boat {self.rounds}?")
        return kept

    async def _share(self, guest: Agent, name: str, memories: list[str]) -> None:
        """Share, pass on, offer and revoke. The last grant ends because the guest leaves."""
        for number in range(SHARES):
            grant = await _grant(guest, "lead", context=f"session {self.rounds}", permission="write")
            passed = await _grant(self.lead, "worker", memory_ids=memories[:1])
            part = await _grant(self.lead, "worker", context=f"session {self.rounds}")
            link = await _grant(self.lead, name, context="anchor")
            back = await self.worker.call(
                "share_context_with_agent", target_agent=name, context=f"answer {number}", bidirectional=True
            )
            self.own_grants = [part, link]
            if number == SHARES - 1:
                return
            await _revoke(self.lead, passed, part, link)
            await _revoke(guest, grant, back["grant_id"])
            await guest.call("answer_offer", offer_id=back["offer_id"], accept=False)

    async def _work(self, guest: Agent, name: str) -> None:
        """Let tasks end in all ways. The guest leaves while it has leases, an assignment and tasks of its own."""
        first = await submit(self.lead, f"Paint boat {self.rounds}.", assign_to=name, idempotency_key=new_id())
        (task,) = await claim(guest)
        waiting = [await submit(self.lead, "Launch it.", depends_on=[first, self.anchor]) for _ in range(3)]
        await self.lead.call("cancel_task", task_id=waiting[0])
        await complete(guest, task)
        await submit(self.lead, "Polish the bell.", required_capabilities=["polishing"])
        for task in await claim(guest):
            await complete(guest, task)
        await submit(
            guest, "Scrub the deck.", required_capabilities=[f"scrubbing-{self.rounds}"], deadline=time.time() + 600
        )
        await submit(guest, "Inspect it.", assign_to="worker")
        for _ in range(2):
            await submit(self.lead, "Dry the sails.", assign_to=name, max_retries=0)
        for task in await claim(self.worker, limit=9):
            await (complete(self.worker, task) if self.rounds % 2 else fail(self.worker, task, retry=False))
        await claim(guest)
        await submit(guest, "Mend a net.", depends_on=[await submit(guest, "Find it.", assign_to="worker")])
        stuck = await submit(guest, "Reef.", assign_to="worker", max_retries=3)
        for task in await claim(self.worker, limit=9):
            if task["task_id"] == stuck:
                await fail(self.worker, task)

    async def _pass_by(self) -> None:
        """Let an agent come that never registers, and one that leaves without memories."""
        async with self.stack.server.agent(f"drifter-{self.rounds}", self.namespace) as drifter:
            await drifter.call("cancel_task", task_id=await submit(drifter, "Never mind."))
            await drifter.call("semantic_search", query="Is there a berth?")
            await drifter.call("wait_for_events", timeout_seconds=0)
        async with joined(self.stack.server, self.namespace, f"visitor-{self.rounds}") as visitor:
            await visitor.store("I was here.", ttl_seconds=600)
            (memory,) = (await visitor.call("get_agent_memories"))["memories"]
            await visitor.call("clear_memory", memory_ids=[memory["memory_id"]])
            await visitor.call("unregister_agent")

    async def _administer(self, name: str) -> None:
        """Quarantine the guest for a moment, and give it a token."""
        service = self.stack.server.service
        await quarantine.quarantine(service.backend, self.namespace, name, time.time())
        await self._look()
        await quarantine.lift(service.backend, self.namespace, name)
        token, _ = await issue_token(
            service.backend, agent=name, namespace=self.namespace, scopes=frozenset({"read"}), seconds=0.2
        )
        await revoke_token(service.backend, token.id)

    async def _settle(self) -> None:
        """Wait until no memory lacks its vector and no entry of the audit waits."""
        keys, client = Keys(self.namespace), self.stack.client

        async def has_settled() -> bool:
            jobs = [key async for key in client.scan_iter(f"{keys.job_streams}vec_*")]
            return not any([await client.xlen(key) for key in jobs]) and not await client.exists(keys.chores)

        await wait_until(has_settled)
        await asyncio.sleep(0.05)

    async def _clean_up(self) -> None:
        """End what the round left to the others, and sweep."""
        await sweep(self.stack.server, self.namespace)
        await remove_expired(self.stack.server.service.backend, self.namespace, 100)
        await _revoke(self.lead, *self.own_grants)
        await self.worker.call("clear_memory", context=f"session {self.rounds}", confirm=True)
        await self._end_tasks()
        await sweep(self.stack.server, self.namespace)

    async def _end_tasks(self) -> None:
        """Cancel, as an admin, the open tasks that the round left; the anchor's stays."""
        keys, client, service = Keys(self.namespace), self.stack.client, self.stack.server.service
        admin = RequestContext(Caller(self.namespace, "operator", admin=True))
        async for key in client.scan_iter(f"{keys.task('')}*", count=1000):
            task_id = key.decode().removeprefix(keys.task(""))
            if task_id != self.anchor and TaskState((await client.hget(key, "state")).decode()) not in ENDED:
                await cancel_task(service, admin, task_id, "the round is over")


async def _grant(agent: Agent, target: str, **what: Any) -> str:
    return (await agent.call("share_context_with_agent", target_agent=target, **what))["grant_id"]


async def _revoke(agent: Agent, *grants: str) -> None:
    for grant in grants:
        await agent.call("revoke_shared_context", grant_id=grant)


@asynccontextmanager
async def team(stack: Stack, namespace: str) -> AsyncGenerator[Team]:
    """Connect the two agents that stay."""
    async with (
        joined(stack.server, namespace, "lead", max_tasks=9) as lead,
        joined(stack.server, namespace, "worker", max_tasks=9) as worker,
        stack.server.agent("captain", namespace) as captain,
    ):
        anchor = await submit(captain, "Lift the anchor.", assign_to="lead")
        await worker.store("The anchor weighs a ton.", context="anchor", priority="critical")
        await _grant(worker, "lead", context="anchor", permission="write")
        yield Team(stack, namespace, lead, worker, anchor)
