"""A namespace with many memories, agents, tasks, kinds of task and grants, and requests for its Functions."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from random import Random
from typing import Any

import numpy as np

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring, Secret
from memory_core.records.codec import pack, unpack
from memory_core.records.grant_proof import GrantProof
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import MemoryType, Priority, Record, Visibility
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.task import TaskPriority
from memory_core.records.task_kind import TaskKind
from memory_core.records.times import NEVER, to_redis
from memory_core.records.vectors import normalise, to_stored
from memory_core.redis_client import Client
from memory_core.settings.settings import VectorStoreSettings
from memory_core.store import functions
from memory_core.store.index import ensure_namespace
from memory_server.memories.record_encoder import RecordEncoder, flat, scope_of
from memory_server.memories.splitter import split

AGENTS, TASKS, KINDS, GRANTS, MEMORIES = 1000, 1000, 450, 256, 5000
CONTENT_BYTES, METADATA_BYTES, TAGS = 1 << 20, 16_384, 32
TEXT_BYTES, PAYLOAD_BYTES = 16_384, 65_536
TOKENS = 4096 // GRANTS
"""Ids of a grant, where its holder has the most grants and the most ids."""
HISTORY, ATTEMPTS = 200, 101
KEEP = 7 * 86_400
HOUR = 3600
GRACE = HOUR
PIPELINE = 200
_BATCH = 100

Request = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A prepared call of a Function, and fields that its answer must have: else it did not do the work."""

    keys: Sequence[str]
    request: Request
    answer: Mapping[str, Any] = field(default_factory=dict[str, Any])


Prepare = Callable[["BusyNamespace"], Coroutine[Any, Any, Call]]


@dataclass(frozen=True, slots=True)
class WorstCase:
    """One row: what is called, and which limit bounds it."""

    function: str
    case: str
    bound: str
    prepare: Prepare


CASES: list[WorstCase] = []


def worst(function: str, case: str, bound: str) -> Callable[[Prepare], Prepare]:
    """Add a case to CASES. The decorated function prepares the call, untimed, before each round."""

    def add(prepare: Prepare) -> Prepare:
        CASES.append(WorstCase(function, case, bound, prepare))
        return prepare

    return add


def limit_of(module: str, name: str) -> int:
    """A limit or a size of a batch of the server."""
    return int(getattr(import_module(f"memory_server.{module}"), name))


def agent(number: int) -> str:
    """The name of an agent."""
    return f"agent-{number:04}"


class BusyNamespace:
    """A namespace at the limits, with its vectors indexed and all records signed."""

    def __init__(self, client: Client, namespace: str = "worst") -> None:
        self.client, self.keys = client, Keys(namespace)
        self.integrity = Integrity(Keyring([Secret(bytes(32))]))
        self.random = Random(7)  # nosec B311
        self._rows = np.random.default_rng(7)
        self.model: Model
        self.owners: dict[str, str] = {}
        self.memories: list[str] = []
        self.held: dict[str, list[str]] = {}
        """The ids of each grant that agent 0 holds."""
        self.kinds = [TaskKind((f"skill-{number}",)) for number in range(KINDS)]
        self.long_text = " ".join(f"{self.random.getrandbits(64):016x}" for _ in range(CONTENT_BYTES // 17 + 1))
        self.long_text = self.long_text[:CONTENT_BYTES]
        self.long_chunks = split(self.long_text)
        self._fields: dict[bool, dict[str, str | bytes]] = {}

    async def call(self, function: str, keys: Iterable[str], request: Mapping[str, Any]) -> dict[str, Any]:
        """Call a Function with the namespace's prefix."""
        return await functions.call(self.client, function, list(keys), prefix=self.keys.prefix, **request)

    async def open(self, agents: int) -> None:
        """Make the index, and register some agents."""
        self.model = (await ensure_namespace(self.client, self.keys.namespace, VectorStoreSettings())).current
        await functions.load_library(self.client)
        for number in range(agents):
            await self.register(agent(number))

    async def fill(self) -> None:
        """Register the agents, store the memories, share with agent 0 and submit the tasks."""
        await self.open(AGENTS)
        calls = [self.store(self.owner_name(number), long=False) for number in range(MEMORIES)]
        await self.all("rm1_store", calls)
        self.memories = [call.request["id"] for call in calls]
        self.held = await self.grant_all(agent(0))
        submitter = 1
        for number in range(TASKS):
            await self.submit(agent(submitter + number % 100), self.kinds[number % KINDS])

    def owner_name(self, number: int) -> str:
        """The owner of a memory by its number: none of the first ten agents, which the cases use."""
        return agent(10 + number % (AGENTS - 10))

    async def all(self, function: str, calls: Sequence[Call]) -> list[dict[str, Any]]:
        """Make many calls through pipelines, and check the answers."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(calls), PIPELINE):
            pipe, part = self.client.pipeline(transaction=False), calls[start : start + PIPELINE]
            for call in part:
                request = {"prefix": self.keys.prefix, **call.request}
                pipe.execute_command("FCALL", function, len(call.keys), *call.keys, pack(request))
            for call, answer in zip(part, await pipe.execute(), strict=True):
                found.append(checked(call, unpack(answer)))
        return found

    def audit(self, who: str, op: str, ids: Sequence[str] = (), **more: Any) -> Request:
        """An entry with its signature."""
        return {"who": who, "op": op, "ids": list(ids), "nonce": new_id(), "key": "k" * 16, "mac": "m" * 64, **more}

    def vector(self) -> bytes:
        """A random vector of unit length, in the format of the namespace's model."""
        row = self._rows.standard_normal(384).astype(np.float32)
        return to_stored(normalise(row.reshape(1, -1), 384)[0], self.model)

    # Memories.

    def record(self, owner_name: str, memory_id: str, *, long: bool) -> Record:
        """A memory with as many tags as allowed; a long one has the longest content and metadata."""
        owner, now = self.owners[owner_name], time.time()
        record = Record(
            id=memory_id, content="", type=MemoryType.DOCUMENT, priority=Priority.MEDIUM, owner=owner,
            writer=owner_name, visibility=Visibility.PUBLIC, scope=frozenset(),
            tags=tuple(f"tag-{number}" for number in range(TAGS if long else 4)), context="context", source="source",
            seq=0, occurred_at=now, created_at=now, updated_at=now, expires_at=NEVER, rev=1, state="",
            metadata='{"text":"' + "m" * (METADATA_BYTES - 11) + '"}' if long else None,
        )  # fmt: skip
        text = self.long_text if long else f"a note of {owner_name} about {memory_id}"
        return replace(record, content=text, scope=scope_of(record, owner), content_hash=digest(memory_id))

    def fields(self, record: Record, *, long: bool) -> list[str | bytes]:
        """The fields of a memory's own hash. The long body is compressed once."""
        chunks = self.long_chunks if long else [record.content]
        if not long or long not in self._fields:
            self._fields[long] = RecordEncoder(self.model).head(record, chunks)
        own = {"owner": record.owner, "writer": record.writer, "scope": SEPARATOR.join(sorted(record.scope))}
        return flat(self._fields[long] | own | {"hash": record.content_hash})

    def given_vector(self) -> Request:
        """A vector as the Functions take it."""
        return {"bytes": self.vector(), "dimension": self.model.dimension, "model": self.model.name}

    def seal(self, memory_id: str, rev: int = 1) -> Request | None:
        """What a Function signs a revision with."""
        return self.integrity.seal(self.keys.namespace, memory_id, rev)

    def store(self, owner_name: str, *, long: bool, vector: bool = True) -> Call:
        """A call of rm1_store."""
        keys, memory_id = self.keys, new_id()
        record = self.record(owner_name, memory_id, long=long)
        named = [
            keys.memory(memory_id), keys.agent(owner_name), keys.job_streams, keys.audit, keys.seq(record.owner),
            keys.same(record.owner, record.content_hash), keys.counters, keys.idempotency(record.owner, memory_id),
            keys.chores, keys.events, keys.data_key(record.owner),
        ]  # fmt: skip
        request = {
            "id": memory_id, "full": False, "owner": record.owner, "ttl": 30 * 86_400, "grace": GRACE,
            "context": digest("context"), "fields": self.fields(record, long=long),
            "pieces": len(self.long_chunks) if long else 1, "vector": self.given_vector() if vector else None,
            "job": {"body": self.long_chunks[0], "trace": ""}, "key": None,
            "idempotency": {"payload": "p" * 64, "ttl": HOUR}, "seal": self.seal(memory_id),
            "audit": self.audit(owner_name, "store_memory", [memory_id]),
        }  # fmt: skip
        return Call(named, request, {"status": "stored"})

    async def stored(self, number: int, owner_name: str, *, long: bool = True, vector: bool = True) -> list[str]:
        """Store memories and return their ids."""
        calls = [self.store(owner_name, long=long, vector=vector) for _ in range(number)]
        for call in calls:
            await self.all("rm1_store", [call])
        return [call.request["id"] for call in calls]

    # Agents and grants.

    async def register(self, name: str, **fields: Any) -> None:
        """Register an agent that has room for 1,000 tasks and can do everything."""
        call = self.registration(name, **fields)
        answer = await self.call("rm1_agent_register", call.keys, call.request)
        self.owners[name] = answer["owner"]

    def registration(self, name: str, capabilities: Sequence[str] | None = None, **fields: Any) -> Call:
        """A call of rm1_agent_register."""
        able = (
            [skill for kind in self.kinds for skill in kind.capabilities][:64] if capabilities is None else capabilities
        )
        profile: dict[str, Any] = {
            "type": "custom", "capabilities": SEPARATOR.join(able), "context_window": 200_000, "max_tasks": 1000,
            "heartbeat_seconds": HOUR, "description": "d" * 100, "profile": self.vector(),
        }  # fmt: skip
        request = {
            "agent": name, "candidate": new_id(), "fields": flat(profile | fields),
            "proof": None, "audit": self.audit(name, "register_agent"), "target": "",
        }  # fmt: skip
        return Call([self.keys.agent(name)], request, {"status": "registered"})

    def entry(self, grant: str, by: str, to: str, own: Sequence[str], **fields: Any) -> Request:
        """What a grant adds to its holder, signed."""
        ends = fields.get("ends", math.inf)
        via: dict[str, Any] = fields.get("via", {})
        tokens = frozenset([*own, *(token for part in via.values() for token in part["tokens"])])
        found: Request = {
            "owner": self.owners[to], "by": by, "by_owner": self.owners[by], "permission": "write",
            "selector": digest(grant), "at": time.time() * 1e6, "ends": ends, "own": list(own), "via": via,
        } | fields  # fmt: skip
        proof = self.proof(grant, by, to, tokens, found["permission"])
        return found | {"proof": proof["body"], "code": proof["code"]}

    def proof(self, grant: str, by: str, to: str, tokens: Iterable[str], permission: str = "write") -> dict[str, str]:
        """What the server signs of a grant before the Function decides on it."""
        owners = {"by_owner": self.owners[by], "owner": self.owners[to]}
        proof = GrantProof(
            id=grant, by=by, permission=permission, ends=math.inf, tokens=frozenset(tokens), **owners
        ).sign(self.integrity, self.keys.namespace, to)
        assert proof is not None
        return proof

    async def grants(self, entries: Mapping[str, tuple[str, Request]], *, state: str = "active") -> None:
        """Write grants, or offers, as rm1_share writes them. Maps each id to the receiver and the entry."""
        pipe = self.client.pipeline(transaction=False)
        for number, (grant, (to, entry)) in enumerate(entries.items()):
            held = self.keys.granted(to) if state == "active" else self.keys.offers(to)
            pipe.hset(held, grant, pack(entry))
            record = {
                "state": state, "from": entry["by"], "to": to, "permission": entry["permission"],
                "from_owner": entry["by_owner"], "to_owner": entry["owner"], "kind": "i", "values": pack(["x"]),
                "note": "n" * 1024, "until": "inf", "at": to_redis(time.time()),
            }  # fmt: skip
            pipe.hset(self.keys.grant(grant), mapping=record)
            pipe.sadd(self.keys.granting(entry["by"]), grant)
            for parent, part in entry["via"].items():
                pipe.sadd(self.keys.children(parent), grant)
                for token in part["tokens"]:
                    pipe.sadd(self.keys.reshared(token[2:]), grant)
            if number % PIPELINE == PIPELINE - 1:
                await pipe.execute()
        await pipe.execute()

    async def grant_all(self, to: str, number: int = GRANTS - 1) -> dict[str, list[str]]:
        """Let an agent hold one grant less than it may, to write, of 16 ids each. Returns the ids of each."""
        entries, given = dict[str, tuple[str, Request]](), dict[str, list[str]]()
        for position in range(number):
            by, grant = agent(500 + position // 32), new_id()
            given[grant] = self.memories[position * TOKENS : (position + 1) * TOKENS]
            entries[grant] = (to, self.entry(grant, by, to, [f"i:{memory_id}" for memory_id in given[grant]]))
        await self.grants(entries)
        return given

    # Tasks.

    def submission(self, submitter: str, kind: TaskKind | None = None, **options: Any) -> Call:
        """A call of rm1_task_submit."""
        kind, task_id = kind or self.kinds[0], new_id()
        free = TaskKind(kind.capabilities, kind.window)
        after: list[str] = options.get("after", [])
        fields: dict[str, Any] = {
            "description": "t" * options.get("text", 100), "type": "general", "priority": TaskPriority.MEDIUM,
            "rank": TaskPriority.MEDIUM.rank, "kind": kind.id, "kind_spec": kind.spec, "open_kind": free.id,
            "open_kind_spec": free.spec, "submitter": submitter, "max_retries": options.get("retries", ATTEMPTS - 1),
            "lease_seconds": HOUR, "claim_seconds": HOUR, "depends_on": SEPARATOR.join(after),
            "payload": "p" * options.get("payload", 100),
        }  # fmt: skip
        request = {
            "id": task_id, "fields": flat(fields), "depends_on": after, "only": kind.only,
            "deadline": options.get("deadline"), "vector": self.vector(), "vector_field": self.model.field,
            "candidates": options.get("to", []), "quota": 10**6, "own_quota": 10**6,
            "idempotency": {"payload": "p" * 64, "ttl": HOUR},
            "audit": self.audit(submitter, "distribute_task", [task_id]),
        }  # fmt: skip
        named = [self.keys.leases, self.keys.idempotency(f"task:{submitter}", task_id)]
        return Call(named, request, {"status": "submitted"})

    async def submit(self, submitter: str, kind: TaskKind | None = None, **options: Any) -> str:
        """Submit a task and return its id."""
        return (await self.submitted(1, submitter, kind, **options))[0]

    async def submitted(self, number: int, submitter: str, kind: TaskKind | None = None, **options: Any) -> list[str]:
        """Submit tasks and return their ids."""
        calls = [self.submission(submitter, kind, **options) for _ in range(number)]
        await self.all("rm1_task_submit", calls)
        return [call.request["id"] for call in calls]

    async def leased(self, number: int, holder: str, *, until: float | None = None) -> dict[str, str]:
        """Submit tasks, lease them to an agent and fill their histories. Maps each to its token."""
        ids = await self.submitted(number, agent(1), to=[holder])
        pipe, entry = self.client.pipeline(transaction=False), pack({"op": "failed", "error": "e" * 1000, "at": "1"})
        tokens, ends = dict[str, str](), to_redis(time.time() + HOUR if until is None else until)
        others = SEPARATOR.join([*(agent(900 + n % 100) for n in range(99)), holder])
        for task_id in ids:
            tokens[task_id] = f"{task_id}.1.{'s' * 16}"
            lease = {
                "state": "leased", "lease_token": tokens[task_id], "fence": 1, "lease_until": ends, "attempt": 1,
                "leased_at": to_redis(time.time()), "holders": others,
            }  # fmt: skip
            pipe.hset(self.keys.task(task_id), mapping=lease)
            pipe.zrem(self.keys.unclaimed, task_id)
            pipe.zadd(self.keys.leases, {task_id: ends})
            pipe.sadd(self.keys.held(holder), task_id)
            pipe.rpush(self.keys.history(task_id), *[entry] * HISTORY)
        await pipe.execute()
        return tokens


def checked(call: Call, answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer. Raises AssertionError if it is not the expected one."""
    differing = {name: answer.get(name) for name, value in call.answer.items() if answer.get(name) != value}
    assert not differing, f"answered {differing}, not {call.answer}"
    return answer
