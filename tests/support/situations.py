"""Checks answers to the thirty situations; without a file, prints the situations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memory_server.contract.arguments import Arguments
from memory_server.mcp.tools_reference import all_tools

Json = dict[str, Any]
ANY_TEXT = "*"


def situations() -> list[Json]:
    """Return the situations with their solutions."""
    return json.loads((Path(__file__).parents[1] / "mcp" / "situations" / "situations.json").read_text())


def problems(answers: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with answers, which map the id of a situation to a tool and its arguments."""
    for situation in situations():
        answer = answers.get(str(situation["id"]))
        where = f"{situation['id']}: {situation['situation']}"
        if not isinstance(answer, dict):
            yield f"{where} No answer."
        elif answer.get("tool") not in situation["tools"]:
            yield f"{where} Tool {answer.get('tool')} instead of {' or '.join(situation['tools'])}."
        else:
            yield from (f"{where} {one}" for one in _wrong_arguments(situation["arguments"], answer))


def _wrong_arguments(expected: Json, answer: Json) -> Iterator[str]:
    given = answer.get("arguments") or {}
    for name, value in expected.items():
        is_right = bool(given.get(name)) if value == ANY_TEXT else _equal(given.get(name), value)
        if not is_right:
            yield f"Argument {name} is {given.get(name)!r} instead of {value!r}."
    yield from _refused(answer["tool"], given)


def _equal(given: Any, value: Any) -> bool:
    """Compare as the tools do: a list may be one text, and its order does not matter."""
    if isinstance(value, list):
        items = given.split(",") if isinstance(given, str) else given
        return isinstance(items, list) and sorted(map(str, items)) == sorted(value)
    return given == value


def _refused(tool: str, arguments: Json) -> Iterator[str]:
    try:
        _accepted()[tool].model_validate(arguments)
    except ValueError as error:
        yield f"{tool} refuses the arguments: {error}."


@cache
def _accepted() -> dict[str, type[Arguments]]:
    return {tool.name: tool.arguments for tool in all_tools()}


def main() -> int:
    """Run the script."""
    if len(sys.argv) == 1:
        print("\n".join(f"{one['id']}. {one['situation']}" for one in situations()))
        return 0
    found = list(problems(json.loads(Path(sys.argv[1]).read_text())))
    print("\n".join(found) or "All answers are right.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
