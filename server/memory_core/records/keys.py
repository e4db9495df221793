"""Spells all Redis keys. Those of a namespace have the hash tag `{ns}`, so one Redis Function can use several."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

NAMESPACES = "rm:namespaces"  # set of all namespaces; sidecars and the sweeper iterate over it
SIDECARS = "rm:sidecars"  # sorted set: sidecar id → deadline (epoch seconds) of its last heartbeat
SWEEPER = "rm:sweeper"  # string: the server process that currently sweeps; expires if it stops
AUDITED = "rm:audited"  # set of the namespaces with an audit stream, including those without memories
LIBRARY_PROOF = "rm:functions"  # string: release and SHA-256 of the newest Functions library, signed
SESSION_KEY = "rm:sessions"  # string: signs the ids of clients' sessions if the servers have no signing key
LANES = 2  # fixed number of bell and ask streams; each is read on its own connection
GROUP = "embedders"  # the consumer group of all sidecars, on job and ask streams


def digest(text: str) -> str:
    """Hash a text to 128 bits in hex, for keys and scope tokens."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def namespace_of(key: str) -> str:
    return key.partition("{")[2].partition("}")[0]


def lane_of(namespace: str) -> int:
    """Return the lane of a namespace, the same in every process."""
    return int(digest(namespace)[:8], 16) % LANES


def bell(lane: int) -> str:
    """Lossy stream of namespaces that have embed jobs."""
    return f"rm:bell:{{{lane}}}"


def asks(lane: int, model: str) -> str:
    """Stream of texts whose vectors of one model a server waits for."""
    return f"rm:asks:{{{lane}}}:{model_key(model)}"


def bulk(lane: int, model: str) -> str:
    """Stream of requests to the bulk engine over the vectors of one model."""
    return f"rm:bulk:{{{lane}}}:{model_key(model)}"


def reply(server_id: str) -> str:
    """Stream of replies to the asks of one server process."""
    return f"rm:reply:{{{server_id}}}"


def sidecar(sidecar_id: str) -> str:
    """Hash: the heartbeat record of one sidecar."""
    return f"rm:sidecar:{{{sidecar_id}}}"


def token_key(token_id: str) -> str:
    """Hash: one bearer token; looked up before its namespace is known."""
    return f"rm:token:{{{token_id}}}"


def operator_key(key_id: str) -> str:
    """String: hash and namespace of a one-time key for an operator; expires soon."""
    return f"rm:operator:{{{key_id}}}"


def ended_sessions(owner: str) -> str:
    """Sorted set: the sessions that an agent's clients ended, by the time at which their ids expire."""
    return f"rm:ended:{{{owner}}}"


def followed_resources(owner: str) -> str:
    """Sorted set: `<session> <URI>` of each resource that an agent's clients follow, by time."""
    return f"rm:follows:{{{owner}}}"


def model_key(model: str) -> str:
    """The part of key names that stands for a model."""
    name = model.rsplit("/", 1)[-1].lower().removeprefix("all-")
    return "vec_" + re.sub(r"[^a-z0-9]+", "_", name).strip("_")


def vector_field(model: str, *, half: bool = True) -> str:
    """Hash field of the vectors of `model` in half precision or float32; a field never mixes models or formats."""
    return model_key(model).replace("vec_", "vec16_" if half else "vec_", 1)


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of a namespace."""

    rest: str

    def __get__(self, keys: Keys, owner: type[Keys]) -> str:
        return keys.prefix + self.rest


@dataclass(frozen=True, slots=True)
class _KeyOf:
    """The keys of one kind. Each is called with the name or id that completes it."""

    rest: str

    def __get__(self, keys: Keys, owner: type[Keys]) -> Callable[[str], str]:
        return (keys.prefix + self.rest).__add__


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace."""

    namespace: str

    @property
    def prefix(self) -> str:
        """Prefix of all keys of the namespace; the Functions for grants, tasks and agents build keys from it."""
        return f"rm:{{{self.namespace}}}:"

    # Memories. Content and filter fields are in `memory` and `chunk`, which are indexed.
    memory_prefix = _Key("mem:")
    memory = _KeyOf("mem:")  # hash: one memory
    chunk_prefix = _Key("chunk:")
    use = _KeyOf("use:")  # hash: access count and last access of a memory, outside the indexed hash
    same_prefix = _Key("same:")
    seq = _KeyOf("seq:")  # hash: context digest → last sequence number of an owner in it; expires with the memories
    chores = _Key("chores")  # sorted set: long memories with chunks still to update, `<id>:<chunks>` → since when
    mark = _Key("mark")  # string: written after the writes to sync (engine/durability.py); expires soon
    index_alias = _Key("idx:memory")  # index for queries without vectors; others use the index of their model
    meta = _Key("meta")  # hash: the current model, and the other one during a change of model (records/model.py)
    counters = _Key("counters")  # hash: the strictly rising clock, last audit numbers, whether records are signed

    caches = _Key("caches")  # sorted set: the keys of cached vectors by their last change; expires with them

    # Embed jobs.
    job_streams = _Key("jobs:")  # prefix of `jobs`; the Functions append the vector field of a model
    dead_jobs = _Key("jobs:dead")  # stream: jobs that failed too often to retry

    # Agents and their owner ids.
    agents = _Key("agents")  # sorted set: registered agents by the deadline (epoch seconds) of their next heartbeat
    sessions = _KeyOf("sessions:")  # sorted set: the newest sessions of an agent by the time until which they are live
    agent = _KeyOf("agent:")  # hash: an agent, its owner ids, and those that earlier holders of its name left (`kept`)
    owner = _KeyOf("owner:")  # hash: the agent of an owner id; the reverse of `agent`
    tombstones = _Key("tombstones")  # set: owner ids whose memories are hidden until they are purged
    data_key = _KeyOf("key:")  # hash: version → wrapped data key of an owner's sensitive memories; `current` is one
    keyed = _Key("keyed")  # set: the owner ids that have a data key
    quarantined = _Key("quarantined")  # hash: agent → since when (epoch seconds) its changes are hidden from others
    performance = _KeyOf("perf:")  # hash: tasks of each type that an agent completed and failed, and their duration
    did = _KeyOf("did:")  # list: vectors of an agent's last completed tasks, each prefixed with its field name
    events = _Key("events")  # stream: events of memories, tasks, agents and grants; `wait_for_events` reads it
    seen = _KeyOf("seen:")  # string: the last cursor into `events` that an agent sent or received
    tokens = _Key("tokens")  # sorted set: the bearer tokens of the namespace by expiry

    # Grants.
    grant = _KeyOf("grant:")  # hash: a grant or an offer; kept for a while after its end
    granted = _KeyOf("granted:")  # hash: grant id → what it adds to an agent's principal, for all grants in force
    granting = _KeyOf("granting:")  # set: ids of the grants in force that an agent gave, and of its offers
    children = _KeyOf("children:")  # set: grants that reshare under this one
    reshared = _KeyOf("reshared:")  # set: grants that reshare this memory by its id
    grants_due = _Key("grants:due")  # sorted set: grants and offers by their end
    offers = _KeyOf("offers:")  # hash: offer id → msgpack of what an agent is asked to share in return, or to take over

    # Tasks.
    task = _KeyOf("task:")  # hash: one task
    task_vector = _KeyOf("taskvec:")  # hash, indexed: the vectors of an open task's text
    blockers = _KeyOf("blockers:")  # set: the tasks that a task still waits for
    dependents = _KeyOf("dependents:")  # set: the tasks that wait for a task
    history = _KeyOf("history:")  # list: the history of a task, each entry a msgpack map
    inbox = _KeyOf("tasks:")  # stream: the tasks that are assigned to an agent or leased by it
    held = _KeyOf("held:")  # set: the tasks that an agent has leased
    submitted = _KeyOf("submitted:")  # sorted set: the newest ten thousand tasks that an agent submitted, by time
    worked = _KeyOf("worked:")  # sorted set: the newest five hundred tasks that an agent leased, by time
    backlog = _KeyOf("backlog:")  # sorted set: pending, unassigned tasks of one kind, in order
    kinds = _Key("kinds")  # hash: the kinds of task that have a backlog, each a msgpack map
    kinds_of = _KeyOf("kinds:of:")  # hash: kind → how many open tasks of it an agent submitted
    avoided = _KeyOf("avoided:")  # sorted set: tasks that an agent failed at, by the time until which others go first
    turns_of = _KeyOf("turns:of:")  # sorted set: tasks of a submitter that wait for a lease, by priority and turn
    turns = _Key("turns")  # hash: priority, or priority and submitter → the turn reached (start-time fair queueing)
    leases = _Key("leases")  # sorted set: leased tasks by the end of their lease
    delayed = _Key("delayed")  # sorted set: tasks to retry, by time of retry
    unclaimed = _Key("unclaimed")  # sorted set: tasks assigned but not leased, by the end of the assignment
    deadlines = _Key("deadlines")  # sorted set: open tasks by their deadline
    unsettled = _Key("unsettled")  # set: ended tasks whose dependents are not all updated
    dead_tasks = _Key("dead")  # stream: dead letters, the tasks that failed for good

    # Audit.
    audit = _Key("audit")  # stream: audit entries
    audit_batch = _KeyOf("audit:")  # string: marks a written batch of audit entries while it may be sent again
    seals = _Key("seals")  # stream: the seals over the audit, each with the id of the last entry that it covers
    sealer = _Key("sealer")  # string: the process that currently seals; expires if it stops

    damaged = _Key("damaged")  # stream: the newest damaged entries that walks removed (redis/functions/02_damage.lua)

    def chunk(self, memory_id: str, number: int) -> str:
        """Hash: a further chunk of a long memory, from 1 on."""
        return f"{self.chunk_prefix}{memory_id}:{number}"

    def hash_of_chunk(self, memory_id: str, number: int) -> str:
        """The hash that has a chunk: chunk 0 is in the memory's own hash."""
        return self.chunk(memory_id, number) if number else self.memory(memory_id)

    def same(self, owner: str, content_hash: str) -> str:
        """Stand for an owner's memories with this content. The Functions keep many contents in a sorted set by expiry,
        `same:<owner>:<bucket>`."""
        return f"{self.same_prefix}{owner}:{content_hash}"

    def cached_vectors(self, field: str, agent: str) -> str:
        """Hash: digests of texts that an agent used → their vectors as in a vector field, each with its own expiry."""
        return f"{self.prefix}emb:{field}:{agent}"

    def idempotency(self, owner: str, key: str) -> str:
        """Hash: the result of a store with an owner's idempotency key."""
        return f"{self.prefix}idem:{owner}:{digest(key)}"

    def jobs(self, model: str) -> str:
        """Stream: texts to embed with one model; sidecars of other models do not read it."""
        return self.job_streams + model_key(model)

    def index(self, version: int = 1) -> str:
        """An index over all memories; the alias refers to one version."""
        return f"{self.index_alias}:v{version}"

    def task_index(self, field: str) -> str:
        """The index over the vectors of open tasks in one vector field."""
        return f"{self.prefix}idx:task:{field}"
