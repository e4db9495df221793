"""The only place that spells a Redis key.

Every key of a namespace carries the hash tag `{ns}`, so that all of them share a cluster slot and one Redis
Function may touch several at once.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

NAMESPACES = "rm:namespaces"
"""Set of all namespaces; sidecars and the sweeper walk it."""
SIDECARS = "rm:sidecars"
"""Sorted set: sidecar id → deadline (epoch seconds) of its last heartbeat."""
SWEEPER = "rm:sweeper"
"""String: the server process that sweeps at present; expires if it stops."""
AUDITED = "rm:audited"
"""Set of the namespaces that have an audit stream, also where nothing was ever stored."""
LANES = 2
"""Fixed number of doorbell and ask streams; each is read on a connection of its own."""
GROUP = "embedders"
"""The consumer group of all sidecars, on job and ask streams alike."""


def digest(text: str) -> str:
    """Shorten any text to 128 bits in hex, for use inside keys and scope tokens."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def namespace_of(key: str) -> str:
    """Give the namespace that a key belongs to."""
    return key.partition("{")[2].partition("}")[0]


def lane_of(namespace: str) -> int:
    """Spread namespaces over the lanes, the same way in every process."""
    return int(digest(namespace)[:8], 16) % LANES


def bell(lane: int) -> str:
    """Lossy stream naming namespaces that have embed jobs."""
    return f"rm:bell:{{{lane}}}"


def asks(lane: int, model: str) -> str:
    """Stream of texts whose vectors of one model somebody waits for."""
    return f"rm:asks:{{{lane}}}:{vector_field(model)}"


def bulk(lane: int, model: str) -> str:
    """Stream of requests to the bulk engine over the vectors of one model."""
    return f"rm:bulk:{{{lane}}}:{vector_field(model)}"


def reply(server_id: str) -> str:
    """Stream of answers to the asks of one server process."""
    return f"rm:reply:{{{server_id}}}"


def sidecar(sidecar_id: str) -> str:
    """Hash: the heartbeat record of one sidecar."""
    return f"rm:sidecar:{{{sidecar_id}}}"


def token_key(token_id: str) -> str:
    """Hash: one bearer token, found before its namespace is known."""
    return f"rm:token:{{{token_id}}}"


def operator_key(key_id: str) -> str:
    """String: hash and namespace of a one-time key to the operator's view; expires soon."""
    return f"rm:operator:{{{key_id}}}"


def vector_field(model: str) -> str:
    """Hash field that holds vectors of `model`; a field never mixes two models."""
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
        """Beginning of all keys of the namespace, of which the Functions of grants, tasks and agents make theirs."""
        return self._key("")

    @property
    def memory_prefix(self) -> str:
        """Prefix of memory hashes, indexed."""
        return self._key("mem:")

    @property
    def chunk_prefix(self) -> str:
        """Prefix of the further pieces of long memories, indexed."""
        return self._key("chunk:")

    def memory(self, memory_id: str) -> str:
        """Hash: one memory."""
        return self.memory_prefix + memory_id

    def chunk(self, memory_id: str, piece: int) -> str:
        """Hash: a further piece of a long memory, from 1 on."""
        return f"{self.chunk_prefix}{memory_id}:{piece}"

    def piece(self, memory_id: str, piece: int) -> str:
        """The hash that holds a piece: the memory itself has the first."""
        return self.chunk(memory_id, piece) if piece else self.memory(memory_id)

    @property
    def mark(self) -> str:
        """String: written behind what is to be synced; see `memory_server.engine.durability`. Expires soon."""
        return self._key("mark")

    def use(self, memory_id: str) -> str:
        """Hash: access count and last access of a memory, kept off the indexed hash."""
        return self._key(f"use:{memory_id}")

    @property
    def same_prefix(self) -> str:
        """Prefix of the keys below."""
        return self._key("same:")

    def same(self, owner: str, content_hash: str) -> str:
        """Sorted set: an owner's memories with this content, by expiry."""
        return f"{self.same_prefix}{owner}:{content_hash}"

    def cached_vector(self, model: str, agent: str, text_digest: str) -> str:
        """String: the vector of a text that an agent had embedded before."""
        return self._key(f"emb:{vector_field(model)}:{agent}:{text_digest}")

    def idempotency(self, owner: str, key: str) -> str:
        """Hash: what was stored under an owner's idempotency key."""
        return self._key(f"idem:{owner}:{digest(key)}")

    def seq(self, owner: str) -> str:
        """Hash: context digest → last sequence number an owner used in it."""
        return self._key(f"seq:{owner}")

    def agent(self, name: str) -> str:
        """Hash: an agent and the owner ids its name maps to."""
        return self._key(f"agent:{name}")

    def owner(self, owner: str) -> str:
        """Hash: what an owner id belongs to; the reverse of `agent`."""
        return self._key(f"owner:{owner}")

    def data_key(self, owner: str) -> str:
        """Hash: version → wrapped data key of an owner's sensitive memories; `current` names the version in force."""
        return self._key(f"key:{owner}")

    @property
    def keyed(self) -> str:
        """Set: the owner ids that have a data key."""
        return self._key("keyed")

    @property
    def agents(self) -> str:
        """Sorted set: registered agents by the deadline (epoch seconds) of their next sign of life."""
        return self._key("agents")

    @property
    def events(self) -> str:
        """Stream: what happened to memories, tasks, agents and grants; `wait_for_events` reads it."""
        return self._key("events")

    def seen(self, name: str) -> str:
        """String: the last cursor into `events` that an agent presented or was given."""
        return self._key(f"seen:{name}")

    def grant(self, grant_id: str) -> str:
        """Hash: who lets whom see what, until when; kept for a while after it ended. Offers lie here too."""
        return self._key(f"grant:{grant_id}")

    def granted(self, name: str) -> str:
        """Hash: grant id → what it adds to an agent's principal, for all grants in force."""
        return self._key(f"granted:{name}")

    def granting(self, name: str) -> str:
        """Set: ids of the grants that an agent gave and that are in force, and of the offers it made."""
        return self._key(f"granting:{name}")

    def children(self, grant_id: str) -> str:
        """Set: grants that pass on something under this one."""
        return self._key(f"children:{grant_id}")

    def reshared(self, memory_id: str) -> str:
        """Set: grants that pass on this memory by its id under a grant of others."""
        return self._key(f"reshared:{memory_id}")

    @property
    def grants_due(self) -> str:
        """Sorted set: grants and offers that end by themselves, by when."""
        return self._key("grants:due")

    def offers(self, name: str) -> str:
        """Hash: offer id → msgpack of a selection that an agent was asked to share in return."""
        return self._key(f"offers:{name}")

    @property
    def tombstones(self) -> str:
        """Set: owner ids whose memories are hidden at once and purged in the background."""
        return self._key("tombstones")

    def task(self, task_id: str) -> str:
        """Hash: one task."""
        return self._key(f"task:{task_id}")

    def history(self, task_id: str) -> str:
        """List: what happened to a task, each entry a msgpack map."""
        return self._key(f"history:{task_id}")

    def inbox(self, name: str) -> str:
        """Stream: the tasks that an agent has been assigned or has leased."""
        return self._key(f"tasks:{name}")

    def held(self, name: str) -> str:
        """Set: the tasks that an agent has leased."""
        return self._key(f"held:{name}")

    def backlog(self, kind: str) -> str:
        """Sorted set: pending tasks of one kind of requirement that nobody has been assigned, in their order."""
        return self._key(f"backlog:{kind}")

    @property
    def kinds(self) -> str:
        """Hash: the kinds of requirement that have a backlog, each a msgpack map."""
        return self._key("kinds")

    @property
    def leases(self) -> str:
        """Sorted set: leased tasks by the end of their lease."""
        return self._key("leases")

    @property
    def delayed(self) -> str:
        """Sorted set: tasks that are tried again later, by when."""
        return self._key("delayed")

    @property
    def unclaimed(self) -> str:
        """Sorted set: tasks assigned but not leased yet, by when the assignment is taken back."""
        return self._key("unclaimed")

    @property
    def deadlines(self) -> str:
        """Sorted set: open tasks that have a deadline, by it."""
        return self._key("deadlines")

    @property
    def unsettled(self) -> str:
        """Set: ended tasks whose dependents have not all been told."""
        return self._key("unsettled")

    @property
    def dead_tasks(self) -> str:
        """Stream: tasks given up; the dead letters."""
        return self._key("dead")

    def performance(self, name: str) -> str:
        """Hash: how many tasks of each type an agent completed and failed, and how long they took."""
        return self._key(f"perf:{name}")

    def did(self, name: str) -> str:
        """List: vectors of the tasks that an agent completed last, each after the name of its field."""
        return self._key(f"did:{name}")

    def submitted(self, name: str) -> str:
        """Sorted set: the tasks that an agent submitted, by when; the newest ten thousand."""
        return self._key(f"submitted:{name}")

    def task_vector(self, task_id: str) -> str:
        """Hash, indexed: the vectors of an open task's text."""
        return self._key(f"taskvec:{task_id}")

    def task_index(self, model: str) -> str:
        """The index over one model's vectors of open tasks."""
        return self._key(f"idx:task:{vector_field(model)}")

    @property
    def quarantined(self) -> str:
        """Hash: agents whose memories nobody else is shown → those changed since when (epoch seconds)."""
        return self._key("quarantined")

    @property
    def job_streams(self) -> str:
        """Beginning of the keys below, of which the Functions make that of each model."""
        return self._key("jobs:")

    def jobs(self, model: str) -> str:
        """Stream: texts to embed by one model; sidecars of others never see them."""
        return self.job_streams + vector_field(model)

    @property
    def dead_jobs(self) -> str:
        """Stream: jobs that failed too often to be tried again."""
        return self._key("jobs:dead")

    @property
    def chores(self) -> str:
        """Sorted set: long memories whose pieces are still to be settled, `<id>:<pieces>` → since when."""
        return self._key("chores")

    @property
    def audit(self) -> str:
        """Stream: who did what."""
        return self._key("audit")

    @property
    def seals(self) -> str:
        """Stream: the seals over the audit, each under the id of the last entry that it covers."""
        return self._key("seals")

    @property
    def sealer(self) -> str:
        """String: the process that seals at present; expires if it stops."""
        return self._key("sealer")

    def audit_batch(self, batch_id: str) -> str:
        """String: a batch of audit entries that was written, for as long as it may come again."""
        return self._key(f"audit:{batch_id}")

    @property
    def tokens(self) -> str:
        """Sorted set: the namespace's bearer tokens, by their expiry."""
        return self._key("tokens")

    @property
    def counters(self) -> str:
        """Hash: the namespace's strictly rising clock, the last audit numbers, and whether records are signed."""
        return self._key("counters")

    @property
    def meta(self) -> str:
        """Hash: the model that answers, and the other one while the model is changed (memory_core/models.py)."""
        return self._key("meta")

    @property
    def index_alias(self) -> str:
        """What queries name that compare no vectors; the others name the index of their model."""
        return self._key("idx:memory")

    def index(self, version: int = 1) -> str:
        """An index over all memories; one of its versions stands behind the alias."""
        return self._key(f"idx:memory:v{version}")
