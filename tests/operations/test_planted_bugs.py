"""Every bug of `make mutation` can still be planted, and the mutators make the expected mutants."""

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
def test_bug_can_be_planted(name: str) -> None:
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


def test_replaced_text_must_occur_exactly_once() -> None:
    for code in ("a b", "x x"):
        with pytest.raises(ValueError, match="occurrences of 'x'"):
            broken(code, [("x", "y")])


@pytest.mark.parametrize("target", TARGETS)
def test_target_files_and_tests_exist(target: str) -> None:
    files, tests = TARGETS[target].files, TARGETS[target].tests
    assert all((ROOT / file).exists() for file in files)
    assert all(map(_exists, tests))


def test_every_equivalent_is_a_mutant() -> None:
    for path, description in EQUIVALENT:
        source = Path(ROOT / path).read_text()
        made = python.mutants(source) if path.endswith(".py") else lua.mutants(source)
        assert description in {mutant.description for mutant in made}, (path, description)


def test_python_mutants_of_executed_code() -> None:
    source = 'def f(a: int = 1) -> bool:\n    "A text of 2."\n    log.info("3")\n    return a < 4 and not g(a)\n'
    changes = [mutant.description for mutant in python.mutants(source)]
    assert changes == [
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


def test_query_mutants_drop_exclusions() -> None:
    changes = [mutant.description for mutant in python.mutants('query = f"-@tag:{{{bind(4)}}} @at:[({now} inf]"\n')]
    assert [new.partition(" -> ")[2] for new in changes] == [
        "f'{bind(4)}}} @at:[({now} inf]'",
        "f'@tag:{{{bind(4)}}} @at:[({now} inf]'",
        "f'-@tag:{{{bind(4)}{now} inf]'",
        "f'-@tag:{{{bind(4)}}} @at:[{now} inf]'",
        "f'-@tag:{{{bind(4)}}} @at:[({now}'",
    ]


def test_lua_mutants_skip_strings_and_comments() -> None:
    source = "-- 1 == 2\nif a == 'b < 1' and c then return 1 end -- not 3\nredis.call('SET', key, 'and')\n"
    assert [mutant.description.partition(" -> ")[2] for mutant in lua.mutants(source)] == [
        "if a ~= 'b < 1' and c then return 1 end -- not 3",
        "if a == 'b < 1' or c then return 1 end -- not 3",
        "if a == 'b < 1' and c then return 2 end -- not 3",
        "if not (a == 'b < 1' and c) then return 1 end -- not 3",
        "",
        "local _ = nil",
    ]
