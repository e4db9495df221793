"""The expected answer of each tool about memories of other agents; test_isolation_matrix.py checks it.

`shows`  the answer holds the target
`names`  the answer names the target as another agent's, and nothing is done to it
`does`   the call succeeds, and differs from the same call about something unknown
`hides`  the answer has the same bytes as the one about something unknown, and lacks the target
`absent` the target is not in the answer, and the call names no target
anything else is an error code; with `forbidden`, the call about something unknown gives the same bytes

The owner stored the memory, submitted the task and gave the grant. The memory is in a context that reader and writer
were granted. The task is pinned to a worker, which has none of these roles. `elsewhere` is in another namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Target = Literal["memory", "task", "grant", "agent"]
ROLES = ("owner", "reader", "writer", "stranger", "elsewhere", "admin")
VISIBILITIES = ("private", "shared", "public", "sensitive")
"""Each has its own rows; `all` means all of them, `own` those that only grants open."""
OPENED_BY_GRANTS = ("private", "shared")


@dataclass(frozen=True, slots=True)
class Call:
    """A call about a target. Placeholders <…> in its arguments become the target's values or unknown ones."""

    tool: str
    target: Target
    arguments: dict[str, Any]


_ALL: dict[str, Any] = {"agent_id": "<agent>", "max_tokens": 200_000}


def _memory(tool: str, **arguments: Any) -> Call:
    return Call(tool, "memory", arguments)


def _task(tool: str, **arguments: Any) -> Call:
    return Call(tool, "task", arguments)


def _agent(tool: str, **arguments: Any) -> Call:
    return Call(tool, "agent", arguments)


_ENDS = {"task_id": "<task>", "lease_token": "<token>"}
_WORK = {"description": "<fresh>", "required_capabilities": ["wings"]}

CALLS: dict[str, Call] = {
    "retrieve_memory": _memory("retrieve_memory", memory_id="<memory>"),
    "update_memory content": _memory("update_memory", memory_id="<memory>", content="mine now"),
    "update_memory labels": _memory("update_memory", memory_id="<memory>", tags=["x"], expected_rev=1),
    "update_memory stale": _memory("update_memory", memory_id="<memory>", content="x", expected_rev=77),
    "clear_memory ids": _memory("clear_memory", memory_ids=["<memory>"], confirm=True),
    "clear_memory dry": _memory("clear_memory", memory_ids=["<memory>"], dry_run=True),
    "clear_memory tag": _memory("clear_memory", tags=["<tag>"], confirm=True),
    "clear_memory agent": _memory("clear_memory", agent_ids=["<agent>"], tags=["<tag>"], confirm=True),
    "find_similar": _memory("find_similar_memories", memory_id="<memory>"),
    "find_similar exact": _memory("find_similar_memories", memory_id="<memory>", exact=True),
    "get_agent_memories": _memory("get_agent_memories", agent_id="<agent>", limit=100),
    "get_agent_memories tag": _memory("get_agent_memories", agent_ids=["<agent>"], tags=["<tag>"]),
    "search hybrid": _memory("semantic_search", query="lighthouse", agent_ids=["<agent>"], limit=100),
    "search vector": _memory(
        "semantic_search", query="lighthouse", mode="vector", agent_ids=["<agent>"], rerank=True, limit=100
    ),
    "search keyword": _memory("semantic_search", query="<word>", mode="keyword"),
    "memory_stats": _memory("memory_stats", agent_id="<agent>"),
    "get_shared_context": _memory("get_shared_context", **_ALL),
    "get_shared_context query": _memory("get_shared_context", **_ALL, query="lighthouse"),
    "get_shared_context since": _memory("get_shared_context", **_ALL, since="2020-01-01"),
    "share ids": _memory("share_context_with_agent", target_agent="worker", memory_ids=["<memory>"]),
    "store_memory near": _memory("store_memory", content="A chest lies under the lighthouse: <word>"),
    "store_memory key": _memory("store_memory", content="<fresh>", idempotency_key="<key>", wait=False),
    "batch_operations": _memory("batch_operations", operations=[{"op": "retrieve_memory", "memory_id": "<memory>"}]),
    "batch clear": _memory("batch_operations", operations=[{"op": "clear_memory", "memory_ids": ["<memory>"]}]),
    "wait_for_events": _memory("wait_for_events", cursor="<start>", timeout_seconds=0, kinds=["memory"]),
    "get_task": _task("get_task", task_id="<task>"),
    "cancel_task": _task("cancel_task", task_id="<task>"),
    "requeue_task": _task("requeue_task", task_id="<task>"),
    "complete_task": _task("complete_task", **_ENDS, result="mine"),
    "fail_task": _task("fail_task", **_ENDS, error="x"),
    "distribute_task after": _task("distribute_task", **_WORK, depends_on=["<task>"]),
    "distribute_task key": _task("distribute_task", **_WORK, idempotency_key="<key>"),
    "heartbeat token": _task("update_agent_heartbeat", lease_tokens=["<token>"]),
    "get_pending_tasks": _task("get_pending_tasks", limit=100),
    "list_tasks": _task("list_tasks", limit=100),
    "wait_for_events task": _task("wait_for_events", cursor="<start>", timeout_seconds=0, kinds=["task"]),
    "revoke_shared_context": Call("revoke_shared_context", "grant", {"grant_id": "<grant>"}),
    "answer_offer": Call("answer_offer", "grant", {"offer_id": "<offer>"}),
    "answer_offer no": Call("answer_offer", "grant", {"offer_id": "<offer>", "accept": False}),
    "get_shared_context grants": Call("get_shared_context", "grant", {"agent_id": "<agent>"}),
    "wait_for_events grant": Call(
        "wait_for_events", "grant", {"cursor": "<start>", "timeout_seconds": 0, "kinds": ["grant"]}
    ),
    "register_agent": _agent("register_agent", agent_id="<agent>"),
    "heartbeat agent": _agent("update_agent_heartbeat", agent_id="<agent>"),
    "pending of agent": _agent("get_pending_tasks", agent_id="<agent>", claim=False),
    "unregister_agent": _agent("unregister_agent", agent_id="<leaver>"),
    "store_memory agent": _agent("store_memory", agent_id="<agent>", content="<fresh>", wait=False),
    "list_agents": _agent("list_agents"),
    "gpu_status": _agent("gpu_status"),
}

TABLE = """
call                       of       owner     reader    writer    stranger  elsewhere admin

retrieve_memory            own      shows     shows     shows     hides     hides     hides
retrieve_memory            public   shows     shows     shows     shows     hides     shows
retrieve_memory            sensitive shows    hides     hides     hides     hides     hides
update_memory content      own      does      forbidden does      hides     hides     hides
update_memory content      public   does      forbidden does      forbidden hides     forbidden
update_memory content      sensitive does     hides     hides     hides     hides     hides
update_memory labels       own      does      forbidden forbidden hides     hides     hides
update_memory labels       public   does      forbidden forbidden forbidden hides     forbidden
update_memory labels       sensitive does     hides     hides     hides     hides     hides
update_memory stale        own      conflict  forbidden conflict  hides     hides     hides
clear_memory ids           own      does      names     names     hides     hides     hides
clear_memory ids           public   does      names     names     names     hides     names
clear_memory ids           sensitive does     hides     hides     hides     hides     hides
clear_memory dry           own      does      names     names     hides     hides     hides
clear_memory dry           public   does      names     names     names     hides     names
clear_memory dry           sensitive does     hides     hides     hides     hides     hides
clear_memory tag           all      does      hides     hides     hides     hides     hides
clear_memory agent         all      does      forbidden forbidden forbidden forbidden does
find_similar               own      does      does      does      hides     hides     hides
find_similar               public   does      does      does      does      hides     does
find_similar               sensitive does     hides     hides     hides     hides     hides
find_similar exact         own      does      does      does      hides     hides     hides
get_agent_memories         own      shows     shows     shows     hides     hides     hides
get_agent_memories         public   shows     shows     shows     shows     hides     shows
get_agent_memories         sensitive shows    hides     hides     hides     hides     hides
get_agent_memories tag     own      shows     shows     shows     hides     hides     hides
get_agent_memories tag     public   shows     shows     shows     shows     hides     shows
get_agent_memories tag     sensitive shows    hides     hides     hides     hides     hides
search hybrid              own      shows     shows     shows     hides     hides     hides
search hybrid              public   shows     shows     shows     shows     hides     shows
search hybrid              sensitive shows    hides     hides     hides     hides     hides
search vector              own      shows     shows     shows     hides     hides     hides
search vector              public   shows     shows     shows     shows     hides     shows
search vector              sensitive shows    hides     hides     hides     hides     hides
search keyword             own      shows     shows     shows     hides     hides     hides
search keyword             public   shows     shows     shows     shows     hides     shows
search keyword             sensitive hides    hides     hides     hides     hides     hides
memory_stats               own      does      does      does      hides     hides     absent
memory_stats               public   does      does      does      does      hides     does
memory_stats               sensitive does     hides     hides     hides     hides     absent
get_shared_context         own      hides     shows     shows     hides     hides     hides
get_shared_context         public   hides     absent    absent    hides     hides     hides
get_shared_context         sensitive hides    absent    absent    hides     hides     hides
get_shared_context query   own      hides     shows     shows     hides     hides     hides
get_shared_context query   public   hides     absent    absent    hides     hides     hides
get_shared_context query   sensitive hides    absent    absent    hides     hides     hides
get_shared_context since   own      hides     shows     shows     hides     hides     hides
get_shared_context since   public   hides     absent    absent    hides     hides     hides
share ids                  own      does      hides     does      hides     hides     hides
share ids                  public   does      hides     does      hides     hides     hides
share ids                  sensitive does     hides     hides     hides     hides     hides
store_memory near          own      shows     shows     shows     absent    absent    absent
store_memory near          public   shows     shows     shows     shows     absent    shows
store_memory key           all      conflict  hides     hides     hides     hides     hides
batch_operations           own      shows     shows     shows     hides     hides     hides
batch_operations           public   shows     shows     shows     shows     hides     shows
batch_operations           sensitive shows    hides     hides     hides     hides     hides
batch clear                own      does      names     names     hides     hides     hides
batch clear                public   does      names     names     names     hides     names
batch clear                sensitive does     hides     hides     hides     hides     hides
wait_for_events            own      absent    shows     shows     absent    absent    absent
wait_for_events            public   absent    shows     shows     shows     absent    shows
wait_for_events            sensitive absent   absent    absent    absent    absent    absent
get_task                   -        shows     hides     hides     hides     hides     shows
cancel_task                -        does      hides     hides     hides     hides     does
requeue_task               -        conflict  hides     hides     hides     hides     conflict
complete_task              -        hides     hides     hides     hides     hides     hides
fail_task                  -        hides     hides     hides     hides     hides     hides
distribute_task after      -        does      hides     hides     hides     hides     does
distribute_task key        -        conflict  hides     hides     hides     hides     hides
heartbeat token            -        hides     hides     hides     hides     hides     hides
get_pending_tasks          -        absent    absent    absent    absent    absent    absent
list_tasks                 -        shows     absent    absent    absent    absent    absent
wait_for_events task       -        shows     absent    absent    absent    absent    absent
revoke_shared_context      -        does      does      hides     hides     hides     does
answer_offer               -        hides     does      hides     hides     hides     hides
answer_offer no            -        hides     does      hides     hides     hides     hides
get_shared_context grants  -        hides     shows     absent    hides     hides     hides
wait_for_events grant      -        absent    shows     absent    absent    absent    absent
register_agent             -        does      forbidden forbidden forbidden forbidden does
heartbeat agent            -        does      forbidden forbidden forbidden forbidden does
pending of agent           -        does      forbidden forbidden forbidden forbidden does
unregister_agent           -        does      forbidden forbidden forbidden forbidden does
store_memory agent         -        does      forbidden forbidden forbidden forbidden does
list_agents                -        shows     shows     shows     shows     absent    shows
gpu_status                 -        absent    absent    absent    absent    absent    absent
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Expected answers of all roles to one call about a memory of one visibility, or about another target."""

    call: str
    visibility: str
    expected: dict[str, str]


def rows() -> list[Row]:
    """Read the table."""
    groups = {"all": VISIBILITIES, "own": OPENED_BY_GRANTS, "-": ("private",)}
    found: list[Row] = []
    for line in TABLE.strip().splitlines()[2:]:
        call, (of, *cells) = line[:27].strip(), line[27:].split()
        expected: dict[str, str] = dict(zip(ROLES, cells, strict=True))
        found += [Row(call, visibility, expected) for visibility in groups.get(of, (of,))]
    return found
