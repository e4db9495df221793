"""How the Redis Functions are built: files share only one table, names are unique, keys come from keys.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from memory_core.package_data import resource
from memory_core.records.keys import Keys
from memory_core.store.functions import library_code

FREEING = """
agent_lost agent_purged agent_release agent_reserved agent_seen agent_session_ended agent_unregister audit_trim bury
change_model delete discard drop_events drop_jobs expire_grants hold_lease key_drop mark_vectors quarantine revoke seal
settled shorten_passed_on task_sweep tidy tidy_key token_revoke
""".split()
"""Functions that free memory or end something. Redis also runs them while it is above `maxmemory`."""
FREEING_IF_BRIEF = "agent_heartbeat task_cancel task_complete task_fail token_note".split()
"""Functions that end something with texts of the caller: then Redis runs only the form for short ones."""
ADDING = """
accept_transfer add_reader adopt adopt_authority agent_register agent_vector audit cache_vectors commit convert_vectors
import import_agent import_grant key_issue key_rewrap key_turn offer_kept owner pieces requeue reseal
share store task_assign task_claim task_requeue task_stored task_submit task_vectors token_issue touch update
""".split()
"""Functions that add to Redis, which then refuses them."""
MOST_LOCALS = 30
"""Most locals in one file; Lua allows 200."""

SOURCES = {path.name: path.read_text() for path in sorted(resource("redis/functions").glob("*.lua"))}
CODE = {name: re.sub(r"--.*", "", source) for name, source in SOURCES.items()}


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def _found(pattern: str) -> list[str]:
    return [name for code in CODE.values() for name in re.findall(pattern, code, re.MULTILINE)]


def test_each_shared_name_is_defined_once() -> None:
    defined = _found(r"^(?:function rm\.(?=\w+\()|rm\.(?=\w+ = ))(\w+)")
    assert "audit" in defined
    assert _repeated(defined) == []
    assert set(_found(r"\brm\.(\w+)")) - {"KEYS"} <= set(defined)


def test_each_function_is_registered_once_and_documented() -> None:
    served = _found(r"^rm\.serve\('(\w+)'")
    assert "rm1_store" in served
    assert _repeated(served) == []
    assert [name for name in served if not any(f"-- {name}" in source for source in SOURCES.values())] == []


def test_every_function_says_whether_it_runs_on_a_full_redis() -> None:
    flags = dict(_flags())
    assert sorted(name for name, flag in flags.items() if flag == "allow-oom") == FREEING
    assert sorted(name for name, flag in flags.items() if flag == "brief") == FREEING_IF_BRIEF
    assert sorted(name for name, flag in flags.items() if not flag) == ADDING


def _flags() -> list[tuple[str, str]]:
    pattern = r"^rm\.serve\('rm1_(\w+)', (?:'([\w-]+)', )?function\("
    found = [match for code in CODE.values() for match in re.findall(pattern, code, re.MULTILINE)]
    assert len(found) == len(_found(r"^rm\.serve\((.)"))
    return found


def test_only_the_shared_table_is_visible_in_all_files() -> None:
    header, *blocks = library_code().split("\ndo\n")
    assert [block.strip() for block in blocks] == [source + "end" for source in SOURCES.values()]
    assert re.findall(r"^local (\w+)", header, re.MULTILINE) == ["rm", "redis"]


def test_every_file_stays_below_the_limit_of_locals() -> None:
    for name, code in CODE.items():
        names = [
            local
            for line in re.findall(r"^local (?!function)(.*?) ?(?:=|$)", code, re.MULTILINE)
            for local in line.split(",")
        ]
        functions = re.findall(r"^local function (\w+)", code, re.MULTILINE)
        assert _repeated([*functions, *(local.strip() for local in names)]) == [], name
        assert len(names) + len(functions) <= MOST_LOCALS, name


def test_functions_take_every_key_from_keys_py() -> None:
    listed = re.search(r"KEYS = \{(.*)\}", library_code())
    assert listed is not None
    keys = dict(re.findall(r"(\w+) = '([^']+)'", listed[1]))
    assert keys["task"] == Keys("team").task("1").removeprefix("rm:{team}:").removesuffix("1")
    assert keys["leases"] == Keys("team").leases.removeprefix("rm:{team}:")
    assert set(_found(r"\bnames\.(\w+)")) == set(keys)
    prefixes = "|".join(re.escape(key) for key in keys.values() if key.endswith(":"))
    assert _found(rf"'(?:{prefixes})'") == []
