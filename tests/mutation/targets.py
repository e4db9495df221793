"""What is mutated, and the tests that should see it, those that see most and soonest first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Some files, and pytest's arguments for the tests that cover them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


_BEHAVIOUR = "tests/test_task_mutations.py::test_the_library_behaves"

TARGETS = {
    "query": Target(
        ("server/memory_server/search/query.py",), ("tests/test_query_texts.py", "tests/test_query_builder.py")
    ),
    "permissions": Target(
        ("server/memory_core/scope.py", "server/memory_core/grants.py", "redis/functions/05_permission.lua"),
        (
            *("tests/test_principals.py", "tests/test_sharing.py", "tests/test_quarantine.py"),
            *("tests/test_sharing_races.py", "tests/test_sharing_paths.py", "tests/test_isolation.py"),
            "tests/test_sharing_algebra.py",
        ),
    ),
    "tokens": Target(
        ("server/memory_core/tokens.py", "server/memory_core/access.py", "redis/functions/70_tokens.lua"),
        ("tests/test_tokens.py", "tests/test_oauth.py"),
    ),
    "crypto": Target(
        (
            *("server/memory_core/sealing.py", "server/memory_core/keyring.py", "server/memory_core/integrity.py"),
            *("server/memory_core/sealed_records.py", "server/memory_server/vault.py"),
            "redis/functions/07_integrity.lua",
        ),
        (
            *("tests/test_keyring.py", "tests/test_sealing.py", "tests/test_integrity.py", "tests/test_sensitive.py"),
            *("tests/test_vault.py", "tests/test_sensitive_keys.py"),
        ),
    ),
    "queue": Target(
        (
            *("embedder/memory_embedder/streams/jobs.py", "embedder/memory_embedder/streams/backlog.py"),
            *("embedder/memory_embedder/streams/groups.py", "redis/functions/20_vectors.lua"),
        ),
        (
            *("tests/test_backlog.py", "tests/test_job_desk.py", "tests/test_commit.py", "tests/test_embedder.py"),
            *("tests/test_embedder_recovery.py", "tests/test_clock_set_back.py", "tests/test_sensitive.py"),
            *("tests/test_sensitive_keys.py", "tests/test_reindex.py"),
        ),
    ),
    "memories": Target(
        ("redis/functions/00_common.lua", "redis/functions/10_memories.lua"),
        (
            *("tests/test_memory_records.py", "tests/test_memories.py", "tests/test_integrity.py"),
            *("tests/test_events.py", "tests/test_sharing.py", "tests/test_quarantine.py"),
            *("tests/test_embedder.py", "tests/test_audit.py", "tests/test_sensitive.py", "tests/test_long_content.py"),
        ),
    ),
    "grants": Target(
        ("redis/functions/30_grants.lua",),
        (
            *("tests/test_grant_records.py", "tests/test_sharing.py", "tests/test_sharing_paths.py"),
            *("tests/test_shared_context.py", "tests/test_leaving.py", "tests/test_sharing_races.py"),
            "tests/test_sharing_algebra.py",
        ),
    ),
    "tasks": Target(
        ("redis/functions/40_queues.lua", "redis/functions/50_tasks.lua", "redis/functions/60_agents.lua"),
        (
            *(_BEHAVIOUR, "tests/test_task_events.py", "tests/test_tasks.py", "tests/test_task_routing.py"),
            *("tests/test_task_ends.py", "tests/test_agents.py", "tests/test_events.py", "tests/test_leaving.py"),
        ),
    ),
}
