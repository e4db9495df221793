"""What `sample` mutates and the tests that should detect it, the most sensitive and fastest first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Source files, and pytest's arguments for the tests that cover them."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


_BEHAVIOUR = "tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour"

TARGETS = {
    "query": Target(
        ("server/memory_server/index/query_builder.py",),
        ("tests/search/test_query_texts.py", "tests/search/test_query_builder.py"),
    ),
    "permissions": Target(
        (
            "server/memory_core/records/scope.py",
            "server/memory_core/records/grant.py",
            "redis/functions/05_permission.lua",
        ),
        (
            *("tests/sharing/test_principals.py", "tests/sharing/test_sharing.py", "tests/security/test_quarantine.py"),
            *(
                "tests/sharing/test_sharing_races.py",
                "tests/sharing/test_sharing_paths.py",
                "tests/isolation/test_isolation.py",
            ),
            "tests/sharing/test_sharing_algebra.py",
        ),
    ),
    "tokens": Target(
        (
            "server/memory_core/records/token.py",
            "server/memory_core/records/access.py",
            "redis/functions/70_tokens.lua",
        ),
        ("tests/access/test_tokens.py", "tests/access/test_oauth.py"),
    ),
    "crypto": Target(
        (
            *(
                "server/memory_core/crypto/sealing.py",
                "server/memory_core/crypto/keyring.py",
                "server/memory_core/crypto/integrity.py",
            ),
            *(
                "server/memory_core/crypto/sealed_memory.py",
                "server/memory_core/store/sealed_jobs.py",
                "server/memory_server/security/vault.py",
            ),
            "redis/functions/07_integrity.lua",
        ),
        (
            *(
                "tests/security/test_keyring.py",
                "tests/security/test_sealing.py",
                "tests/security/test_integrity.py",
                "tests/security/test_sensitive.py",
            ),
            *("tests/security/test_vault.py", "tests/security/test_sensitive_keys.py"),
        ),
    ),
    "queue": Target(
        (
            *("embedder/memory_embedder/streams/jobs.py", "embedder/memory_embedder/streams/backlog.py"),
            *("embedder/memory_embedder/streams/groups.py", "redis/functions/20_vectors.lua"),
        ),
        (
            *(
                "tests/embedder/test_backlog.py",
                "tests/embedder/test_job_desk.py",
                "tests/memories/test_commit.py",
                "tests/embedder/test_embedder.py",
            ),
            *(
                "tests/embedder/test_embedder_recovery.py",
                "tests/operations/test_clock_set_back.py",
                "tests/security/test_sensitive.py",
            ),
            *("tests/security/test_sensitive_keys.py", "tests/operations/test_reindex.py"),
        ),
    ),
    "memories": Target(
        ("redis/functions/00_common.lua", "redis/functions/10_memories.lua"),
        (
            *(
                "tests/memories/test_memory_records.py",
                "tests/memories/test_memories.py",
                "tests/security/test_integrity.py",
            ),
            *("tests/events/test_events.py", "tests/sharing/test_sharing.py", "tests/security/test_quarantine.py"),
            *(
                "tests/embedder/test_embedder.py",
                "tests/security/test_audit.py",
                "tests/security/test_sensitive.py",
                "tests/memories/test_long_content.py",
            ),
        ),
    ),
    "grants": Target(
        tuple(f"redis/functions/{name}.lua" for name in ("30_grants", "31_selections", "32_grant_limits")),
        (
            *(
                "tests/sharing/test_grant_records.py",
                "tests/sharing/test_sharing.py",
                "tests/sharing/test_sharing_paths.py",
            ),
            *(
                "tests/sharing/test_shared_context.py",
                "tests/agents/test_unregister.py",
                "tests/sharing/test_sharing_races.py",
            ),
            "tests/sharing/test_sharing_algebra.py",
        ),
    ),
    "tasks": Target(
        tuple(
            f"redis/functions/{name}.lua"
            for name in (
                "36_task_records",
                "37_team",
                "38_turns",
                "39_avoided",
                "40_queues",
                "50_tasks",
                "52_claims",
                "60_agents",
            )
        ),
        (
            *(
                _BEHAVIOUR,
                "tests/tasks/test_task_events.py",
                "tests/tasks/test_tasks.py",
                "tests/tasks/test_task_routing.py",
            ),
            *(
                "tests/tasks/test_task_ends.py",
                "tests/agents/test_agents.py",
                "tests/events/test_events.py",
                "tests/agents/test_unregister.py",
            ),
        ),
    ),
}
