"""Spells all Redis keys.

Every key of a namespace has the hash tag `{ns}`, so that all share a cluster slot and one Redis Function can use
several.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

NAMESPACES = "rm:namespaces"
"""Set of all namespaces; sidecars and the sweeper iterate over it."""
SIDECARS = "rm:sidecars"
"""Sorted set: sidecar id → deadline (epoch seconds) of its last heartbeat."""
SWEEPER = "rm:sweeper"
"""String: the server process that currently sweeps; expires if it stops."""
AUDITED = "rm:audited"
"""Set of the namespaces with an audit stream, including those without memories."""
LANES = 2
"""Fixed number of bell and ask streams; each is read on its own connection."""
GROUP = "embedders"
"""The consumer group of all sidecars, on job and ask streams."""


def digest(text: str) -> str:
    """Hash a text to 128 bits in hex, for keys and scope tokens."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def namespace_of(key: str) -> str:
    """Return the namespace of a key."""
    return key.partition("{")[2].partition("}")[0]


def lane_of(namespace: str) -> int:
    """Return the lane of a namespace, the same in every process."""
    return int(digest(namespace)[:8], 16) % LANES


def bell(lane: int) -> str:
    """Lossy stream of namespaces that have embed jobs."""
    return f"rm:bell:{{{lane}}}"


def asks(lane: int, model: str) -> str:
    """Stream of texts whose vectors of one model a server waits for."""
    return f"rm:asks:{{{lane}}}:{vector_field(model)}"


def bulk(lane: int, model: str) -> str:
    """Stream of requests to the bulk engine over the vectors of one model."""
    return f"rm:bulk:{{{lane}}}:{vector_field(model)}"


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


def vector_field(model: str) -> str:
    """Hash field of the vectors of `model`; a field never mixes two models."""
    name = model.rsplit("/", 1)[-1].lower().removeprefix("all-")
    return "vec_" + re.sub(r"[^a-z0-9]+", "_", name).strip("_")


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one namespace."""

    namespace: str

    def _key(self, rest: str) -> str:
        return f"rm:{{{self.namespace}}}:{rest}"

    @property
    def prefix(self) -> str:
        """Prefix of all keys of the namespace; the Functions for grants, tasks and agents build keys from it."""
        return self._key("")

    @property
    def memory_prefix(self) -> str:
        """Prefix of memory hashes, indexed."""
        return self._key("mem:")

    @property
    def chunk_prefix(self) -> str:
        """Prefix of the further chunks of long memories, indexed."""
        return self._key("chunk:")

    def memory(self, memory_id: str) -> str:
        """Hash: one memory."""
        return self.memory_prefix + memory_id

    def chunk(self, memory_id: str, number: int) -> str:
        """Hash: a further chunk of a long memory, from 1 on."""
        return f"{self.chunk_prefix}{memory_id}:{number}"

    def hash_of_chunk(self, memory_id: str, number: int) -> str:
        """The hash that has a chunk: chunk 0 is in the memory's own hash."""
        return self.chunk(memory_id, number) if number else self.memory(memory_id)

    @property
    def mark(self) -> str:
        """String: written after the writes to sync; see `memory_server.engine.durability`. Expires soon."""
        return self._key("mark")

    def use(self, memory_id: str) -> str:
        """Hash: access count and last access of a memory, outside the indexed hash."""
        return self._key(f"use:{memory_id}")

    @property
    def same_prefix(self) -> str:
        """Prefix of `same` keys."""
        return self._key("same:")

    def same(self, owner: str, content_hash: str) -> str:
        """Sorted set: an owner's memories with this content, by expiry."""
        return f"{self.same_prefix}{owner}:{content_hash}"

    def cached_vector(self, model: str, agent: str, text_digest: str) -> str:
        """String: the cached vector of a text that an agent used."""
        return self._key(f"emb:{vector_field(model)}:{agent}:{text_digest}")

    def idempotency(self, owner: str, key: str) -> str:
        """Hash: the result of a store with an owner's idempotency key."""
        return self._key(f"idem:{owner}:{digest(key)}")

    def seq(self, owner: str) -> str:
        """Hash: context digest → last sequence number of an owner in it."""
        return self._key(f"seq:{owner}")

    def agent(self, name: str) -> str:
        """Hash: an agent and the owner ids of its name."""
        return self._key(f"agent:{name}")

    def owner(self, owner: str) -> str:
        """Hash: the agent of an owner id; the reverse of `agent`."""
        return self._key(f"owner:{owner}")

    def data_key(self, owner: str) -> str:
        """Hash: version → wrapped data key of an owner's sensitive memories; `current` is the current version."""
        return self._key(f"key:{owner}")

    @property
    def keyed(self) -> str:
        """Set: the owner ids that have a data key."""
        return self._key("keyed")

    @property
    def agents(self) -> str:
        """Sorted set: registered agents by the deadline (epoch seconds) of their next heartbeat."""
        return self._key("agents")

    @property
    def events(self) -> str:
        """Stream: events of memories, tasks, agents and grants; `wait_for_events` reads it."""
        return self._key("events")

    def seen(self, name: str) -> str:
        """String: the last cursor into `events` that an agent sent or received."""
        return self._key(f"seen:{name}")

    def grant(self, grant_id: str) -> str:
        """Hash: a grant or an offer; kept for a while after its end."""
        return self._key(f"grant:{grant_id}")

    def granted(self, name: str) -> str:
        """Hash: grant id → what it adds to an agent's principal, for all grants in force."""
        return self._key(f"granted:{name}")

    def granting(self, name: str) -> str:
        """Set: ids of the grants in force that an agent gave, and of its offers."""
        return self._key(f"granting:{name}")

    def children(self, grant_id: str) -> str:
        """Set: grants that reshare under this one."""
        return self._key(f"children:{grant_id}")

    def reshared(self, memory_id: str) -> str:
        """Set: grants that reshare this memory by its id."""
        return self._key(f"reshared:{memory_id}")

    @property
    def grants_due(self) -> str:
        """Sorted set: grants and offers by their end."""
        return self._key("grants:due")

    def offers(self, name: str) -> str:
        """Hash: offer id → msgpack of the selection that an agent is asked to share in return."""
        return self._key(f"offers:{name}")

    @property
    def tombstones(self) -> str:
        """Set: owner ids whose memories are hidden and will be purged in the background."""
        return self._key("tombstones")

    def task(self, task_id: str) -> str:
        """Hash: one task."""
        return self._key(f"task:{task_id}")

    def blockers(self, task_id: str) -> str:
        """Set: the tasks that a task still waits for."""
        return self._key(f"blockers:{task_id}")

    def dependents(self, task_id: str) -> str:
        """Set: the tasks that wait for a task."""
        return self._key(f"dependents:{task_id}")

    def history(self, task_id: str) -> str:
        """List: the history of a task, each entry a msgpack map."""
        return self._key(f"history:{task_id}")

    def inbox(self, name: str) -> str:
        """Stream: the tasks that are assigned to an agent or leased by it."""
        return self._key(f"tasks:{name}")

    def held(self, name: str) -> str:
        """Set: the tasks that an agent has leased."""
        return self._key(f"held:{name}")

    def backlog(self, kind: str) -> str:
        """Sorted set: pending, unassigned tasks of one kind, in order."""
        return self._key(f"backlog:{kind}")

    @property
    def kinds(self) -> str:
        """Hash: the kinds of task that have a backlog, each a msgpack map."""
        return self._key("kinds")

    @property
    def turns(self) -> str:
        """Hash: priority, or priority and submitter → the turn reached (start-time fair queueing)."""
        return self._key("turns")

    @property
    def leases(self) -> str:
        """Sorted set: leased tasks by the end of their lease."""
        return self._key("leases")

    @property
    def delayed(self) -> str:
        """Sorted set: tasks to retry, by time of retry."""
        return self._key("delayed")

    @property
    def unclaimed(self) -> str:
        """Sorted set: tasks assigned but not leased, by the end of the assignment."""
        return self._key("unclaimed")

    @property
    def deadlines(self) -> str:
        """Sorted set: open tasks by their deadline."""
        return self._key("deadlines")

    @property
    def unsettled(self) -> str:
        """Set: ended tasks whose dependents are not all updated."""
        return self._key("unsettled")

    @property
    def dead_tasks(self) -> str:
        """Stream: dead letters, the tasks that failed for good."""
        return self._key("dead")

    def performance(self, name: str) -> str:
        """Hash: how many tasks of each type an agent completed and failed, and how long they took."""
        return self._key(f"perf:{name}")

    def did(self, name: str) -> str:
        """List: vectors of the tasks that an agent completed last, each prefixed with its field name."""
        return self._key(f"did:{name}")

    def submitted(self, name: str) -> str:
        """Sorted set: the newest ten thousand tasks that an agent submitted, by time."""
        return self._key(f"submitted:{name}")

    def task_vector(self, task_id: str) -> str:
        """Hash, indexed: the vectors of an open task's text."""
        return self._key(f"taskvec:{task_id}")

    def task_index(self, model: str) -> str:
        """The index over one model's vectors of open tasks."""
        return self._key(f"idx:task:{vector_field(model)}")

    @property
    def quarantined(self) -> str:
        """Hash: quarantined agent → since when (epoch seconds) its changes are hidden from others."""
        return self._key("quarantined")

    @property
    def job_streams(self) -> str:
        """Prefix of `jobs` keys; the Functions append the vector field of a model."""
        return self._key("jobs:")

    def jobs(self, model: str) -> str:
        """Stream: texts to embed with one model; sidecars of other models do not read it."""
        return self.job_streams + vector_field(model)

    @property
    def dead_jobs(self) -> str:
        """Stream: jobs that failed too often to retry."""
        return self._key("jobs:dead")

    @property
    def chores(self) -> str:
        """Sorted set: long memories with chunks still to update, `<id>:<chunks>` → since when."""
        return self._key("chores")

    @property
    def audit(self) -> str:
        """Stream: audit entries."""
        return self._key("audit")

    @property
    def seals(self) -> str:
        """Stream: the seals over the audit, each with the id of the last entry that it covers."""
        return self._key("seals")

    @property
    def sealer(self) -> str:
        """String: the process that currently seals; expires if it stops."""
        return self._key("sealer")

    def audit_batch(self, batch_id: str) -> str:
        """String: marks a written batch of audit entries while it may be sent again."""
        return self._key(f"audit:{batch_id}")

    @property
    def tokens(self) -> str:
        """Sorted set: the bearer tokens of the namespace by expiry."""
        return self._key("tokens")

    @property
    def counters(self) -> str:
        """Hash: the strictly rising clock, the last audit numbers, and whether records are signed."""
        return self._key("counters")

    @property
    def meta(self) -> str:
        """Hash: the current model, and the other one during a change of model (memory_core/models.py)."""
        return self._key("meta")

    @property
    def index_alias(self) -> str:
        """The index name for queries without vectors; others use the index of their model."""
        return self._key("idx:memory")

    def index(self, version: int = 1) -> str:
        """An index over all memories; the alias refers to one version."""
        return self._key(f"idx:memory:v{version}")
