"""Bugs that would lose, leak or lie, as somebody might write them one day; the tests named must see each of them.

`make mutation` plants one after the other in a copy of the source and runs its tests until one fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from mutation.tree import Replacements


@dataclass(frozen=True, slots=True)
class Bug:
    """Texts that are replaced in one file, each of which stands there once."""

    path: str
    replacements: Replacements
    tests: tuple[str, ...]


_CORE, _SERVER, _EMBEDDER, _LUA = (
    "server/memory_core/",
    "server/memory_server/",
    "embedder/memory_embedder/",
    "redis/functions/",
)
_AUDITED = "  rm.audit(names, now, request.audit)\n"
_TOLD = "  rm.emit_written(names, 'stored'"

BUGS = {
    # who may see and do what
    "the scope is not part of the query": Bug(
        _SERVER + "index/query.py",
        [('scope = _tagged(query, "scope", principal.tokens)', 'scope = "*"')],
        ("tests/search/test_query_builder.py",),
    ),
    "no re-check on the loaded record": Bug(
        _SERVER + "index/loader.py",
        [("return found.is_live(now) and principal.may_see(found)", "return True")],
        (
            "tests/sharing/test_sharing_races.py::test_what_is_asked_over_the_wire_after_a_revoke_or_an_expiry_is_hidden",
            "tests/sharing/test_sharing_races.py::test_what_was_resolved_before_a_revoke_reads_and_writes_nothing_after_it",
        ),
    ),
    "bound values are not escaped": Bug(
        _SERVER + "index/query.py",
        [('value.replace("\\\\", "\\\\\\\\") if isinstance(value, str) else value', "value")],
        ("tests/search/test_query_builder.py",),
    ),
    "a word stands in the query text": Bug(
        _SERVER + "index/query.py",
        [('@{TEXT_FIELDS}:({narrowed.bind(word)})"', '@{TEXT_FIELDS}:({word})"')],
        ("tests/search/test_query_builder.py",),
    ),
    "what is left of a deleted agent is shown": Bug(
        _CORE + "records/grant.py",
        [("hidden=frozenset(owner_token(owner.decode()) for owner in tombstones)", "hidden=frozenset()")],
        (
            "tests/agents/test_unregister.py::test_deleted_memories_are_hidden_at_once_from_everybody_and_purged_by_the_sweeper",
        ),
    ),
    "a grant never ends": Bug(
        _CORE + "records/grant.py",
        [('if part["tokens"] and part["ends"] / _MICROSECONDS > now', 'if part["tokens"]')],
        (
            "tests/sharing/test_principals.py::test_a_grant_gives_nothing_from_its_end_on",
            "tests/sharing/test_principals.py::test_what_is_passed_on_ends_by_itself",
        ),
    ),
    "anybody may write under anybody's grant": Bug(
        _LUA + "10_memories.lua",
        [
            ("if not rm.contains(request.owners, found[1]) and not rm.may_write(", "if false and not rm.may_write("),
        ],
        (
            "tests/sharing/test_sharing_races.py::test_what_was_resolved_before_a_revoke_reads_and_writes_nothing_after_it",
            "tests/sharing/test_sharing_races.py::test_no_write_lands_after_the_revoke_returned",
        ),
    ),
    "a write acts as whom it names": Bug(
        _SERVER + "engine/request.py",
        [("    if caller.admin:\n        return replace(", "    if True:\n        return replace(")],
        ("tests/access/test_tokens.py::test_an_admin_may_write_for_others_and_nobody_else_may",),
    ),
    "quarantine hides nothing": Bug(
        _CORE + "records/scope.py",
        [
            (
                "return self.may_read(record.scope) and (since is None or record.updated_at < since)",
                "return self.may_read(record.scope)",
            )
        ],
        ("tests/security/test_quarantine.py::test_what_an_agent_under_quarantine_wrote_is_seen_by_itself_alone",),
    ),
    "any secret opens a token": Bug(
        _CORE + "records/token.py",
        [("found is None or not right or", "found is None or")],
        ("tests/access/test_tokens.py::test_whatever_is_wrong_with_a_token_the_answer_is_the_same",),
    ),
    "a revoked token is good": Bug(
        _CORE + "records/token.py",
        [("or found[0].revoked or", "or")],
        ("tests/access/test_tokens.py::test_a_revoked_token_stops_at_once_in_the_middle_of_a_session",),
    ),
    "a token's scopes are not asked": Bug(
        _CORE + "records/access.py",
        [("if scope is not None and scope not in self.scopes and not self.admin:", "if False:")],
        ("tests/access/test_tokens.py::test_a_scope_opens_its_own_tools_and_admin_all",),
    ),
    "nobody calls too often": Bug(
        _SERVER + "access/gate.py",
        [("        self._rates.take(caller.namespace, caller.agent, calls)\n", "")],
        (
            "tests/access/test_tokens.py::test_an_agent_that_calls_too_often_is_told_when_to_come_back_and_others_are_served",
        ),
    ),
    "nobody keeps too much": Bug(
        _SERVER + "memories/quotas.py",
        [("if limit and then > limit and then > now:", "if False:")],
        ("tests/memories/test_quotas.py::test_refusal_over_the_quota_names_the_limit_and_the_remedy",),
    ),
    "unknown arguments are taken": Bug(
        _SERVER + "contract/arguments.py",
        [('extra="forbid", hide_input_in_errors=True, frozen=True, allow_inf_nan=False', "frozen=True")],
        ("tests/mcp/test_tool_schemas.py",),
    ),
    # what is kept, and how
    "a sealed value is bound to no place": Bug(
        _CORE + "crypto/sealing.py",
        [
            ("encrypt(nonce, plain, head + self.bound)", "encrypt(nonce, plain, None)"),
            ("rest[_NONCE_BYTES:], head + self.bound)", "rest[_NONCE_BYTES:], None)"),
        ],
        ("tests/security/test_sealing.py",),
    ),
    "codes of records are not compared": Bug(
        _CORE + "crypto/integrity.py",
        [
            (
                'return None if hmac.compare_digest(code or b"", expected(key).encode()) else IntegrityFailure.ALTERED',
                "return None",
            )
        ],
        ("tests/security/test_integrity.py",),
    ),
    "a vector of NaN is kept": Bug(
        _LUA + "20_vectors.lua",
        [
            (
                "return vector and not vector.sealed and not is_unit_vector(vector.bytes, vector.dimension)",
                "return false",
            )
        ],
        ("tests/isolation/test_isolation.py::test_no_vector_of_an_agent_poisons_anothers_searches",),
    ),
    "seals are not linked": Bug(
        _SERVER + "security/audit/seals.py",
        [("before = GENESIS if chain is None else bytes.fromhex(chain)", "before = GENESIS")],
        ("tests/security/test_audit_chain.py",),
    ),
    "a store leaves no audit entry": Bug(
        _LUA + "10_memories.lua",
        [
            (_AUDITED + _TOLD, _TOLD),
        ],
        ("tests/security/test_audit.py::test_a_change_and_its_entry_are_one_write",),
    ),
    "memories never expire": Bug(
        _LUA + "10_memories.lua",
        [("  rm.expire({mem}, expires, grace)\n", "")],
        (
            "tests/memories/test_memories.py::test_each_priority_has_its_lifetime",
            "tests/memories/test_memories.py::test_expired_memory_is_gone_at_once",
        ),
    ),
    "expired memories are found": Bug(
        _SERVER + "index/query.py",
        [
            (
                'return f"-{_expired(query, now)}"',
                'return ""',
            )
        ],
        ("tests/search/test_query_builder.py", "tests/memories/test_memories.py"),
    ),
    # what happens once
    "an expected revision is not compared": Bug(
        _SERVER + "memories/update.py",
        [("if expected_rev is not None and old.rev != expected_rev:", "if False:")],
        ("tests/memories/test_memories.py::test_update_with_a_stale_revision_is_refused_and_changes_nothing",),
    ),
    "an update of a revision long gone is written": Bug(
        _LUA + "10_memories.lua",
        [
            ("if tonumber(found[2]) ~= request.rev then", "if false then"),
        ],
        (
            "tests/security/test_integrity.py::test_without_a_key_too_what_was_changed_since_it_was_read_is_not_overwritten",
        ),
    ),
    "a key of idempotency is not looked up": Bug(
        _LUA + "10_memories.lua",
        [
            (
                "  local earlier = idempotency and rm.replay(idem, 'memory_id'",
                "  local earlier = false and rm.replay(idem, 'memory_id'",
            )
        ],
        ("tests/memories/test_memories.py::test_idempotency_key_stores_once",),
    ),
    "a key of idempotency stands for any payload": Bug(
        _LUA + "00_common.lua",
        [("  if seen.payload ~= idempotency.payload then return {status = 'idempotency_conflict'} end\n", "")],
        ("tests/memories/test_memories.py::test_idempotency_key_with_another_payload_is_refused",),
    ),
    "a late vector lands on another revision": Bug(
        _LUA + "20_vectors.lua",
        [("if not model or found[1] ~= tostring(item.rev) or found[2] ~= item.hash then", "if not model then")],
        ("tests/memories/test_commit.py",),
    ),
    "a late vector brings a memory back": Bug(
        _LUA + "20_vectors.lua",
        [
            ("  if not found[1] then return 'gone' end\n", ""),
            (
                "if not model or found[1] ~= tostring(item.rev) or found[2] ~= item.hash then",
                "if not model or found[1] and (found[1] ~= tostring(item.rev) or found[2] ~= item.hash) then",
            ),
        ],
        ("tests/memories/test_commit.py",),
    ),
    "a job is acknowledged before its vector is there": Bug(
        _EMBEDDER + "streams/groups.py",
        [('{stream: ">"}, count=count, block=block_ms)', '{stream: ">"}, count=count, block=block_ms, noack=True)')],
        ("tests/embedder/test_embedder_recovery.py::test_killed_sidecar_loses_no_job",),
    ),
    "a job that nobody can do is tried for ever": Bug(
        _EMBEDDER + "streams/jobs.py",
        [("            if deliveries > MAX_DELIVERIES:\n", "            if deliveries > 10**9:\n")],
        ("tests/embedder/test_embedder_recovery.py::test_job_delivered_five_times_is_buried_without_inference",),
    ),
    "any token holds a lease": Bug(
        _LUA + "50_tasks.lua",
        [("task.lease_token ~= request.token or ", "")],
        ("tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour",),
    ),
    "a lease never ends": Bug(
        _LUA + "50_tasks.lua",
        [("  if tonumber(task.lease_until) * 1000000 <= now then return 'stale' end\n", "")],
        ("tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour",),
    ),
    # what is said
    "an answer never says that it is partial": Bug(
        _SERVER + "contract/answer.py",
        [
            (
                "    reasons = list(dict.fromkeys(warnings))\n",
                "    return None\n    reasons = list(dict.fromkeys(warnings))\n",
            )
        ],
        ("tests/search/test_search.py::test_memory_without_a_vector_is_found_by_keywords_as_partial",),
    ),
    "a search that was cut short is an answer": Bug(
        _SERVER + "index/queries.py",
        [
            (
                "    if warnings := [text for answer in answers for text in _warnings(answer)]:\n",
                "    if warnings := []:\n",
            )
        ],
        ("tests/search/test_cut_short.py",),
    ),
}
