"""The bugs that `make mutation` plants can still be planted, and the mutators change what they say."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutation import lua, python
from mutation.equivalents import EQUIVALENT
from mutation.targets import TARGETS
from mutation.tree import ROOT, broken
from support.planted_bugs import BUGS


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_can_be_planted(name: str) -> None:
    bug = BUGS[name]
    code = (ROOT / bug.path).read_text()
    planted = broken(code, bug.replacements)
    assert planted != code
    if bug.path.endswith(".py"):
        ast.parse(planted)
    assert all(_exists(test) for test in bug.tests)


def _exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).exists()


def test_a_text_that_stands_twice_or_nowhere_is_not_replaced() -> None:
    for code in ("a b", "x x"):
        with pytest.raises(ValueError, match="places say 'x'"):
            broken(code, [("x", "y")])


@pytest.mark.parametrize("target", TARGETS)
def test_there_is_what_is_mutated_and_what_tests_it(target: str) -> None:
    files, tests = TARGETS[target].files, TARGETS[target].tests
    assert all((ROOT / file).exists() for file in files)
    assert all(map(_exists, tests))


def test_what_is_called_equivalent_is_a_mutant() -> None:
    for path, told in EQUIVALENT:
        source = Path(ROOT / path).read_text()
        made = python.mutants(source) if path.endswith(".py") else lua.mutants(source)
        assert told in {mutant.told for mutant in made}, (path, told)


def test_python_is_mutated_where_it_does_something() -> None:
    source = 'def f(a: int = 1) -> bool:\n    "A text of 2."\n    log.info("3")\n    return a < 4 and not g(a)\n'
    told = [mutant.told for mutant in python.mutants(source)]
    assert told == [
        "1 -> (2)",
        "return a < 4 and not g(a) -> return None",
        "a < 4 and not g(a) -> (a < 4 or not g(a))",
        "a < 4 and not g(a) -> (not g(a))",
        "a < 4 and not g(a) -> (a < 4)",
        "a < 4 -> (a <= 4)",
        "4 -> (5)",
        "not g(a) -> (g(a))",
    ]
    for mutant in python.mutants(source):
        ast.parse(mutant.code)


def test_what_excludes_is_dropped_from_queries() -> None:
    told = [mutant.told for mutant in python.mutants('query = f"-@tag:{{{bind(4)}}} @at:[({now} inf]"\n')]
    assert [new.partition(" -> ")[2] for new in told] == [
        "f'{bind(4)}}} @at:[({now} inf]'",
        "f'@tag:{{{bind(4)}}} @at:[({now} inf]'",
        "f'-@tag:{{{bind(4)}{now} inf]'",
        "f'-@tag:{{{bind(4)}}} @at:[{now} inf]'",
        "f'-@tag:{{{bind(4)}}} @at:[({now}'",
    ]


def test_lua_is_mutated_outside_texts_and_comments() -> None:
    source = "-- 1 == 2\nif a == 'b < 1' and c then return 1 end -- not 3\nredis.call('SET', key, 'and')\n"
    assert [mutant.told.partition(" -> ")[2] for mutant in lua.mutants(source)] == [
        "if a ~= 'b < 1' and c then return 1 end -- not 3",
        "if a == 'b < 1' or c then return 1 end -- not 3",
        "if a == 'b < 1' and c then return 2 end -- not 3",
        "if not (a == 'b < 1' and c) then return 1 end -- not 3",
        "",
        "local _ = nil",
    ]
