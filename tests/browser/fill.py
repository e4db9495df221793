"""Memories, agents, tasks and grants of a small team, for the dashboard to show."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from support.stack import Agent, Server

XSS = (
    "<script>window.pwned = 1</script>",
    '<img src=x onerror="window.pwned = 1">',
    "<svg/onload=window.pwned=1>",
    '"><iframe srcdoc="<script>parent.pwned=1</script>">',
    "{{constructor.constructor('window.pwned=1')()}} ${window.pwned = 1}",
    "javascript:window.pwned=1",
    "</textarea><style>body{display:none}</style>",
    "\u202egnp.exe\u0000"[:-1] + "[link](javascript:pwned=1)",
)
_TOPICS = (
    ("code", "The module of {} parses its input with a streaming tokenizer and rejects nesting beyond 64 levels."),
    ("code", "The retry of {} doubles its pause after each failure, up to five minutes."),
    ("document", "The design of {} keeps one write path and one query builder; everything else reads."),
    ("conversation", "Ann asked whether {} may be restarted on Friday; Ben said not before the audit."),
    ("task", "Migrating {} to the new cluster took four hours and one rollback."),
    ("context", "We decided that {} answers within 200 ms at the 95th percentile."),
    ("system_state", "Deployment of {} finished; all health checks are green."),
    ("search_result", "Three papers compare {} with approximate nearest neighbours on graphs."),
)
_THINGS = (
    "billing",
    "search",
    "the sidecar",
    "authentication",
    "the scheduler",
    "reporting",
    "the importer",
    "the cache",
)
_PRIORITIES = ("medium", "high", "low", "critical", "archive")


@dataclass(slots=True)
class Team:
    """Ids that the tests look for."""

    memory: str
    shared: str
    grant: str
    dead: str
    leased: str
    xss: list[str]


async def fill(server: Server, namespace: str, copies: int = 1) -> Team:
    """Let three agents work in a namespace."""
    async with (
        server.agent("claude", namespace) as claude,
        server.agent("gemini", namespace) as gemini,
        server.agent("vscode", namespace) as vscode,
    ):
        await _register(claude, gemini, vscode)
        ids = await _remember([claude, gemini, vscode], copies)
        xss = [await claude.store(text, tags=["<b>tag</b>"], context="<i>ctx</i>", source="<u>src</u>") for text in XSS]
        await claude.call("semantic_search", query="how fast must it answer")
        grant = await claude.call(
            "share_context_with_agent", target_agent="gemini", memory_ids=[ids[0]], note="for the review"
        )
        await gemini.call("share_context_with_agent", target_agent="claude", tags=["infra"], permission="write")
        dead, leased = await _work(claude, gemini, vscode)
        return Team(ids[0], ids[0], grant["grant_id"], dead, leased, xss)


async def _register(claude: Agent, gemini: Agent, vscode: Agent) -> None:
    await claude.call(
        "register_agent", agent_type="claude", capabilities=["code", "review"], max_tasks=4, heartbeat_seconds=3600,
        description="Writes and reviews Python.",
    )  # fmt: skip
    await gemini.call(
        "register_agent", agent_type="gemini", capabilities=["search", "writing"], max_tasks=2, heartbeat_seconds=3600,
        description="Finds and sums up papers.",
    )  # fmt: skip
    await vscode.call("register_agent", agent_type="vscode", capabilities=["code"], heartbeat_seconds=3600)
    await claude.call("update_agent_heartbeat", status="busy", load=0.6)


async def _remember(agents: list[Agent], copies: int) -> list[str]:
    operations: list[dict[str, object]] = []
    for number, ((kind, text), thing) in enumerate(product(_TOPICS, _THINGS * copies)):
        operations.append(
            {
                "op": "store_memory", "content": text.format(thing) + (f" ({number})" if copies > 1 else ""),
                "memory_type": kind, "priority": _PRIORITIES[number % 7 % 5], "tags": [thing.split()[-1], "infra"],
                "context": f"project {thing}", "visibility": "public" if number % 4 == 0 else "private",
            }
        )  # fmt: skip
    ids: list[str] = []
    for number, agent in enumerate(agents):
        answer = await agent.call("batch_operations", operations=operations[number :: len(agents)], max_tokens=0)
        ids += [result["result"]["memory_id"] for result in answer["results"]]
    return ids


async def _work(claude: Agent, gemini: Agent, vscode: Agent) -> tuple[str, str]:
    """Leave tasks in every state: dead, leased, retrying, completed and pending."""

    async def held(agent: Agent) -> str:
        tasks = await agent.call("get_pending_tasks", with_memories=0, wait_seconds=10)
        return tasks["tasks"][0]["lease_token"]

    async def submit(what: str, agent: str, **arguments: object) -> str:
        answer = await claude.call("distribute_task", description=what, assign_to=agent, **arguments)
        return answer["task_id"]

    dead = await submit("Rotate the keys of the billing cluster", "vscode", max_retries=0, priority="high")
    await vscode.call("fail_task", task_id=dead, lease_token=await held(vscode), error="no access to the vault")
    later = await submit("Reindex the archive of last year", "vscode", task_type="index")
    await vscode.call("fail_task", task_id=later, lease_token=await held(vscode), error="disk is full <b>now</b>")
    done = await submit("Sum up the three papers on graph indexes", "gemini", task_type="research")
    await gemini.call("complete_task", task_id=done, lease_token=await held(gemini), result={"summary": "All agree."})
    leased = await submit("Review the change of the query builder", "claude", lease_seconds=600)
    await held(claude)
    await submit("Write the release notes", "gemini", priority="low")
    return dead, leased


async def has_vectors(server: Server, namespace: str) -> bool:
    """Whether no memory waits for its vector."""
    async with server.agent("claude", namespace) as claude:
        return (await claude.call("memory_stats"))["vector_backlog"] == 0
