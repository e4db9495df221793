"""Long parts of tasks are shortened to what an answer holds, and read whole page by page, in each form of an answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from support import task_helpers
from support.embedder_fixtures import wait_until
from support.stack import Agent, Server, answer_of, in_own_task, text_of
from support.task_helpers import claim, complete, fail, joined, lease, submit

from memory_server.contract import tokens

quick, lead, ada, ben = task_helpers.quick, task_helpers.lead, task_helpers.ada, task_helpers.ben
MOST = 8000
RESULTS: dict[str, Any] = {
    "lines": "".join(f"Line {number} of the log says that all is well.\n" for number in range(1200)),
    "one line": "word " * 12_000,
    "without spaces": "0123456789abcdef" * 3500,
    "CJK": "港は夜明けに開く。" * 2000,
    "object": {"links": [{"number": number, "state": 'rusty "red"\n'} for number in range(1000)]},
}


async def sized(agent: Agent, tool: str, /, most: int = MOST, **arguments: Any) -> tuple[dict[str, Any], str]:
    """Return both forms of an answer, each of which must fit."""
    result = await agent.raw(tool, **arguments)
    answer, text = answer_of(result), text_of(result)
    for form in (text, json.dumps(answer, ensure_ascii=False)):
        assert tokens.count(form) <= most, (tool, tokens.count(form))
    return answer, text


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


async def read_as_text(agent: Agent, task_id: str, **arguments: Any) -> list[str]:
    """Follow the cursors that the text forms name; return the texts."""
    texts, cursor = list[str](), None
    while not texts or cursor:
        _, text = await sized(agent, "get_task", task_id=task_id, cursor=cursor, **arguments)
        named = re.findall(rf"(?m)^More: get_task task_id={task_id} cursor=(\S+)$", text)
        texts, cursor = [*texts, text], named[0] if named else None
    return texts


async def read_parts(agent: Agent, task_id: str, most: int = MOST) -> dict[str, str]:
    """Read the parts of a task that are not shown whole at first, page by page."""
    page, _ = await sized(agent, "get_task", most, task_id=task_id, max_tokens=most)
    parts = {name: page["task"][name] for name in page["task"].get("cut", ())}
    while cursor := page.get("next_cursor"):
        page, _ = await sized(agent, "get_task", most, task_id=task_id, max_tokens=most, cursor=cursor)
        parts[page["part"]] = parts.get(page["part"], "") + page["content"]
    return parts


async def done(lead: Agent, worker: Agent, result: Any, **ended: Any) -> str:
    """Let a worker do a task with a result; return the task's id."""
    task_id = await submit(lead)
    await complete(worker, await lease(worker), result=result, **ended)
    return task_id


@pytest.mark.parametrize("kind", RESULTS)
async def test_pages_of_a_long_result_together_are_the_result(lead: Agent, ada: Agent, kind: str) -> None:
    task_id = await done(lead, ada, RESULTS[kind])
    assert (await read_parts(lead, task_id))["result"] == as_text(RESULTS[kind])
    assert (await lead.call("get_task", task_id=task_id, max_tokens=0))["task"]["result"] == RESULTS[kind]


async def test_text_alone_leads_through_a_long_result(lead: Agent, ada: Agent) -> None:
    task_id = await done(lead, ada, RESULTS["lines"])
    first, *others = await read_as_text(lead, task_id)
    assert "Line 0 of the log" in first
    assert "PARTIAL" in first
    assert others
    shown = "".join([first, *others])
    assert all(f"Line {number} of" in shown for number in (0, 300, 600, 900, 1198))
    assert "cut" not in re.sub(r'"[^"]*"', "", first)


async def test_text_of_a_long_result_names_its_memory(lead: Agent, ada: Agent) -> None:
    task_id = await submit(lead)
    ended = await complete(ada, await lease(ada), result=RESULTS["lines"], store_result=True)
    _, text = await sized(lead, "get_task", task_id=task_id)
    assert f"get_task task_id={task_id}" in text
    assert ended["memory_id"] in text


async def test_text_with_all_tokens_has_all_of_a_long_result(lead: Agent, ada: Agent) -> None:
    task_id = await done(lead, ada, RESULTS["lines"])
    text = text_of(await lead.raw("get_task", task_id=task_id, max_tokens=0))
    assert json.dumps(RESULTS["lines"]) in text
    assert "PARTIAL" not in text


@pytest.mark.long
async def test_all_long_parts_of_a_task_are_read_page_by_page(lead: Agent, ada: Agent) -> None:
    payload, handoff, error = {"log": "y;" * 15_000}, "Note; " * 2500, "Error: " * 2000
    task_id = await submit(lead, "Weigh; " * 2000, payload=payload, max_retries=3)
    for _ in range(3):
        await fail(ada, await lease(ada), error=error, handoff=handoff)
    metrics = {"steps": "m;" * 8000}
    await complete(ada, await lease(ada), result=RESULTS["object"], metrics=metrics)
    for most in (3000, MOST):
        parts = await read_parts(lead, task_id, most)
        assert json.loads(parts["payload"]) == payload
        assert json.loads(parts["result"]) == RESULTS["object"]
        assert json.loads(parts["metrics"]) == metrics
        assert parts["description"] == "Weigh; " * 2000
        assert parts["history"].count(json.dumps(error)) == 3
    shown = "".join(await read_as_text(lead, task_id))
    assert shown.count("m;") > 7900  # a page may end within one


async def test_short_payload_is_in_the_text_of_a_task(lead: Agent) -> None:
    task_id = await submit(lead, payload={"anchor": 3})
    assert '{"anchor": 3}' in text_of(await lead.raw("get_task", task_id=task_id))


async def test_cursor_of_a_task_leads_to_nothing_else(lead: Agent, ada: Agent, ben: Agent) -> None:
    await ben.call("update_agent_heartbeat", status="draining")
    task_id, other = await done(lead, ada, RESULTS["lines"]), await done(lead, ada, RESULTS["CJK"])
    cursor = (await lead.call("get_task", task_id=task_id))["next_cursor"]
    position, _, check = cursor.partition("~")[0].rpartition(".")
    for wrong in ("x", "result", "result.1", f"{position}.00000000", f"result.999999.{check}", "held_by.0.00000000",
                  "result.9999999999999.0", "~" * 900, f"~{cursor}"):  # fmt: skip
        assert (await lead.raw("get_task", task_id=task_id, cursor=wrong)).is_error, wrong
    assert "changed" in text_of(await lead.raw("get_task", task_id=other, cursor=cursor))
    assert (await ben.raw("get_task", task_id=task_id, cursor="result.0.00000000")).is_error


# several tasks in one answer


async def test_list_shows_small_results_beside_a_large_one(lead: Agent, ada: Agent) -> None:
    small = [await done(lead, ada, f"Small {number}.") for number in range(3)]
    large = await done(lead, ada, RESULTS["lines"])
    small += [await done(lead, ada, f"Small {number}.") for number in range(3, 6)]
    answer, text = await sized(lead, "list_tasks")
    results = {task["task_id"]: task["result"] for task in answer["tasks"]}
    assert [results[task_id] for task_id in small] == [f"Small {number}." for number in range(6)]
    assert RESULTS["lines"].startswith(results[large])
    assert len(results[large]) > 2000
    assert [task["task_id"] for task in answer["tasks"] if task.get("cut")] == [large]
    assert "Small 5." in text
    assert "Line 0 of the log" in text
    assert f"get_task task_id={large}" in text


async def test_list_of_large_tasks_gives_each_its_share(lead: Agent, ada: Agent) -> None:
    for _ in range(6):
        await done(lead, ada, RESULTS["CJK"])
    answer, _ = await sized(lead, "list_tasks")
    lengths = {len(task["result"]) for task in answer["tasks"]}
    assert len(lengths) == 1
    assert min(lengths) > 500


async def _burden(lead: Agent, ada: Agent, ben: Agent, number: int) -> None:
    """Submit tasks for ben whose payload, handoff, predecessor and description are long."""
    await ben.call("update_agent_heartbeat", status="draining")
    first = await done(lead, ada, RESULTS["lines"])
    for _ in range(number):
        await submit(lead, "Weigh; " * 1500, payload={"log": "y;" * 15_000}, depends_on=[first])
    for task in await claim(ada, limit=number):
        await fail(ada, task, error="Stuck; " * 2000, handoff="Note; " * 2500)
    await ada.call("update_agent_heartbeat", status="draining")
    await ben.call("update_agent_heartbeat", status="active")

    async def are_pending() -> bool:
        return len((await lead.call("list_tasks", states=["pending"]))["tasks"]) == number

    await wait_until(are_pending)


@pytest.mark.parametrize("number", [1, 4])
async def test_claim_of_large_tasks_fits_and_shows_each_beginning(
    lead: Agent, ada: Agent, ben: Agent, number: int
) -> None:
    await lead.store("Weigh; " * 500, visibility="public", wait=False)
    await _burden(lead, ada, ben, number)
    answer, text = await sized(ben, "get_pending_tasks", limit=number, wait_seconds=10)
    assert len(answer["tasks"]) == number
    for task in answer["tasks"]:
        assert task["description"].startswith("Weigh; Weigh; ")
        assert task["payload"].startswith('{"log": "y;y;')
        assert task["handoff"].startswith("Note; ")
        assert task["predecessors"][0]["result"].startswith("Line 0 of")
        assert task["earlier_failures"][0]["error"].startswith("Stuck; ")
        assert task["lease_token"] in text
    assert "get_task" in answer["reason"]
    assert json.loads((await read_parts(ben, answer["tasks"][0]["task_id"]))["payload"]) == {"log": "y;" * 15_000}


async def test_held_tasks_fit_a_claim_and_a_registration(quick: Server, namespace: str, lead: Agent) -> None:
    async with in_own_task(joined(quick, namespace, "cleo", max_tasks=8)) as cleo:
        for _ in range(8):
            await submit(lead, "Weigh; " * 1500, payload={"log": "y;" * 15_000})
        held = await claim(cleo, limit=8)
        assert len(held) == 8
        answer, text = await sized(cleo, "get_pending_tasks")
        assert len(answer["held"]) == 8
        assert all(task["lease_token"] in text for task in held)
        answer, text = await sized(cleo, "register_agent", description="skill; " * 2300)
        assert len(answer["work"]["held"]) == 8
        assert all(task["lease_token"] in text for task in held)
        assert "PARTIAL" in text


async def test_a_claim_that_fits_is_not_shortened(lead: Agent, ada: Agent) -> None:
    await submit(lead, payload={"log": "y" * 5000})
    answer = await ada.call("get_pending_tasks", wait_seconds=10)
    assert answer["tasks"][0]["payload"] == {"log": "y" * 5000}
    assert not answer["partial"]
    assert "cut" not in answer["tasks"][0]
