"""Models copy ids with what stands around them, write numbers as people do, and enum values in capitals."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import ValidationError
from support.stack import Agent, text_of

from memory_core.records.ids import new_id
from memory_core.settings.settings import Settings
from memory_server.contract.arguments import Arguments
from memory_server.contract.dashboard import AuditArguments, SnippetArguments
from memory_server.contract.written_values import kinds_of
from memory_server.mcp.server import tool_groups
from memory_server.runtime import Runtime

REQUIRED: dict[str, Any] = {"operations": [{"op": "gpu_status"}], "memory_ids": ["m"]}
NOT_IDS = {"agent_id", "agent_ids", "exact_ids"}
TASKS, TOKENS = {"depends_on"}, {"lease_token", "lease_tokens"}
CURSORS = {"cursor"}
NUMBERS = {"20": 20, " 20 ": 20, "1,000": 1000, "12,000": 12000, "1_000": 1000, "8k": 8000, "8K": 8000, "1.5k": 1500,
           "200 k": 200_000, "1m": 1_000_000, "`20`": 20, '"20"': 20}  # fmt: skip
NO_NUMBERS = (
    "ten",
    "1.000",
    "1,00",
    "1,0000",
    "k",
    "8kk",
    "8b",
    "0x20",
    "1.2345k",
    "1e400",
    "20 or 30",
    "²",
    "-",
    "9" * 400,
)


def _models() -> dict[str, type[Arguments]]:
    groups = tool_groups(Runtime(Settings.model_construct()))
    return {tool.name: tool.arguments for tools in groups.values() for tool in tools}


def _fields() -> Iterator[tuple[str, type[Arguments], str, Any]]:
    for tool, model in _models().items():
        for name, field in model.model_fields.items():
            yield tool, model, name, field.annotation


def _given(model: type[Arguments], name: str, value: Any) -> Any:
    needed = {key: REQUIRED.get(key, "x") for key, field in model.model_fields.items() if field.is_required()}
    return getattr(model.model_validate(needed | {name: value}), name)


def _is_id(name: str) -> bool:
    return name not in NOT_IDS and (name.endswith(("_id", "_ids")) or name in TASKS | TOKENS | CURSORS)


AROUND = ("[{}]", "`{}`", '"{}"', "'{}'", " {}\n", "[`{}`]", "“{}”", "<{}>", "({})", "{},", "**{}**", "[{}]:", "{}.")


async def test_ids_are_accepted_with_what_stands_around_them() -> None:
    refused, tried, seen = list[Any](), 0, set[str]()
    for tool, model, name, annotation in _fields():
        if not _is_id(name):
            continue
        seen.add(name)
        one, other = (new_id() + (".1" if name in TOKENS else "") for _ in range(2))
        is_list = any(get_origin(kind) is list for kind in kinds_of(annotation))
        for form in AROUND:
            pairs: list[tuple[Any, Any]] = [(form.format(one), [one] if is_list else one)]
            if is_list:
                both = [form.format(one), form.format(other)]
                pairs += [(both, [one, other]), (", ".join(both), [one, other]), ("\n".join(both), [one, other])]
            for given, wanted in pairs:
                tried += 1
                try:
                    read: Any = _given(model, name, given)
                except ValidationError:
                    read = None
                if read != wanted:
                    refused.append((tool, name, given, read))
    assert {"memory_id", "memory_ids", "task_id", "grant_id", "offer_id", "lease_token", "lease_tokens",
            "depends_on", "cursor"} <= seen  # fmt: skip
    assert tried > 200
    assert refused == []


async def test_lists_of_ids_are_accepted_with_brackets_that_are_not_json() -> None:
    one, other = new_id(), new_id()
    for given in (f"[{one}, {other}]", f"['{one}', '{other}']", f'["{one}", "{other}"]', f"- {one}\n- {other}"):
        assert _given(_models()["clear_memory"], "memory_ids", given) == [one, other], given


async def test_numbers_are_accepted_as_people_write_them() -> None:
    refused, tried = list[Any](), 0
    for tool, model, name, annotation in _fields():
        if set(kinds_of(annotation)) - {int, float}:
            continue
        for text, number in NUMBERS.items():
            tried += 1
            try:
                same = _given(model, name, text) == number
            except ValidationError as error:  # the number itself may be out of its bounds
                same = _refusal(error) == _try(model, name, number)
            if not same:
                refused.append((tool, name, text))
    assert tried > 200
    assert refused == []


def _refusal(error: ValidationError) -> list[str]:
    return [problem["type"] for problem in error.errors()]


def _try(model: type[Arguments], name: str, value: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        _given(model, name, value)
    return _refusal(caught.value)


@pytest.mark.parametrize("text", NO_NUMBERS)
async def test_doubtful_numbers_are_refused_with_what_to_write(text: str) -> None:
    for model, name in ((_models()["register_agent"], "context_window"), (_models()["semantic_search"], "limit")):
        with pytest.raises(ValidationError, match="20, 1,000 or 8k"):
            _given(model, name, text)


async def test_schema_of_a_number_still_says_integer() -> None:
    groups = tool_groups(Runtime(Settings.model_construct()))
    (tool,) = [tool for tools in groups.values() for tool in tools if tool.name == "register_agent"]
    assert tool.parameters["properties"]["context_window"]["type"] == "integer"


def _choices(kind: Any) -> list[str]:
    if get_origin(kind) is list:
        return [choice for one in kinds_of(get_args(kind)[0]) for choice in _choices(one)]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    return [one.value for one in kind] if isinstance(kind, type) and issubclass(kind, StrEnum) else []


async def test_values_of_a_choice_are_accepted_in_any_case() -> None:
    refused, tried = list[Any](), 0
    for tool, model, name, annotation in _fields():
        (kind,) = kinds_of(annotation) if len(kinds_of(annotation)) == 1 else (None,)
        for choice in _choices(kind):
            many = get_origin(kind) is list
            spoken = choice.replace("_", " ").title()
            for form in (choice.upper(), choice.title(), f" {choice} ", f'"{choice}"', f"`{choice}`", spoken,
                         choice.replace("_", "-")):  # fmt: skip
                for given in (form, [form]) if many else (form,):
                    tried += 1
                    try:
                        same = _given(model, name, given) == ([choice] if many else choice)
                    except ValidationError:
                        same = False
                    if not same:
                        refused.append((tool, name, given))
    assert tried > 300
    assert refused == []


async def test_unknown_value_of_a_choice_is_refused_with_the_choices() -> None:
    with pytest.raises(ValidationError, match="'conversation', 'code'"):
        _given(_models()["store_memory"], "memory_type", "Fact")


async def test_dashboard_reads_ids_the_same_way() -> None:
    one = new_id()
    assert _given(SnippetArguments, "memory_ids", f"[{one}]") == [one]
    assert _given(AuditArguments, "cursor", f"[{one}]") == one


async def test_forms_work_in_calls_and_are_audited_as_ids(alice: Agent) -> None:
    memory_id = await alice.store("Ropes are coiled clockwise.", priority="CRITICAL", memory_type="Document")
    found = await alice.call("retrieve_memory", memory_id=f"[{memory_id}]", max_tokens="8k")
    assert found["memory"]["priority"] == "critical"
    batch = await alice.call("batch_operations", operations=[{"op": "retrieve_memory", "memory_id": f"`{memory_id}`"}])
    assert batch["succeeded"] == 1
    refused = await alice.raw("register_agent", context_window="ten")
    assert "context_window" in text_of(refused)
    assert "8k" in text_of(refused)
    assert (await alice.call("register_agent", context_window="200k"))["agent"]["context_window"] == 200_000
