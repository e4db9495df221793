"""Mutants of the Redis Functions. Each changes one operator, condition, number or write."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mutation.python import Mutant

_SWAPPED = {
    r"==": "~=",
    r"~=": "==",
    r"<=": "<",
    r">=": ">",
    r"(?<![<>=~])<(?!=)": "<=",
    r"(?<![<>=~])>(?!=)": ">=",
    r"\band\b": "or",
    r"\bor\b": "and",
    r"\bnot ": "",
    r"\btrue\b": "false",
    r"\bfalse\b": "true",
    r" \+ ": " - ",
    r" - ": " + ",
    r" \* ": " / ",
}
_NUMBER = re.compile(r"(?<![\w.'#%])\d+(?![\w.'])")
_CONDITION = re.compile(r"\bif (.+) then\b")
_DONE = re.compile(
    r"^(\s*)((?:redis\.call|rm\.(?:audit|emit\w*|add_\w+|record|expire|enqueue|track_content|count_open|remember))\(.*\))$"
)
_RETURNED = re.compile(r"\bif .+ then (return .+) end[\s\0]*$")
_TEXT = re.compile(r"'[^'\n]*'|--.*")


def mutants(source: str) -> list[Mutant]:
    """All mutants of a library file, in the order of its lines."""
    lines = source.splitlines()
    found: list[Mutant] = []
    for number, line in enumerate(lines):
        if "redis.register_function" in line or line.lstrip().startswith("--"):
            continue
        for changed in dict.fromkeys(_changes(line)):
            code = "\n".join([*lines[:number], changed, *lines[number + 1 :]]) + "\n"
            found.append(Mutant(number + 1, f"{line.strip()} -> {changed.strip()}", code))
    return found


def _changes(line: str) -> Iterator[str]:
    bare = _TEXT.sub(lambda text: "\0" * len(text[0]), line)
    for pattern, new in _SWAPPED.items():
        for match in re.finditer(pattern, bare):
            yield line[: match.start()] + new + line[match.end() :]
    for match in _NUMBER.finditer(bare):
        yield line[: match.start()] + str(int(match[0]) + 1) + line[match.end() :]
    if match := _CONDITION.search(bare):
        yield f"{line[: match.start(1)]}not ({line[match.start(1) : match.end(1)]}){line[match.end(1) :]}"
    if match := _RETURNED.search(bare):
        yield line[: match.start()] + line[match.end() :]
    if match := _DONE.match(bare):
        yield f"{match[1]}local _ = nil"
