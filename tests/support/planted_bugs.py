"""Plausible bugs that lose, leak or misreport data; the named tests must detect each of them.

`make mutation` plants each bug in a copy of the source and runs its tests until one fails.
"""

from __future__ import annotations

from dataclasses import dataclass

from mutation.tree import Replacements


@dataclass(frozen=True, slots=True)
class Bug:
    """Replacements in one file; each replaced text occurs there once."""

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
_EVENT = "  rm.emit_written(names, 'stored'"

BUGS = {
    # permissions
    "the scope is not part of the query": Bug(
        _SERVER + "index/query_builder.py",
        [('scope = _tagged(query, "scope", principal.tokens)', 'scope = "*"')],
        ("tests/search/test_query_builder.py",),
    ),
    "no re-check on the loaded record": Bug(
        _SERVER + "index/loader.py",
        [("return found.is_live(now) and principal.may_see(found)", "return True")],
        (
            "tests/sharing/test_sharing_races.py::test_mcp_call_after_revoke_or_expiry_does_not_show_the_memory",
            "tests/sharing/test_sharing_races.py::test_principal_resolved_before_revoke_cannot_read_or_write_after",
        ),
    ),
    "bound values are not escaped": Bug(
        _SERVER + "index/query_builder.py",
        [('value.replace("\\\\", "\\\\\\\\") if isinstance(value, str) else value', "value")],
        ("tests/search/test_query_builder.py",),
    ),
    "a word is put into the query text": Bug(
        _SERVER + "index/query_builder.py",
        [('@{TEXT_FIELDS}:({narrowed.bind(word)})"', '@{TEXT_FIELDS}:({word})"')],
        ("tests/search/test_query_builder.py",),
    ),
    "memories of a deleted agent are shown": Bug(
        _CORE + "records/grant.py",
        [("hidden=frozenset(owner_token(owner.decode()) for owner in tombstones)", "hidden=frozenset()")],
        ("tests/agents/test_unregister.py::test_deleted_memories_are_hidden_at_once_and_purged_by_sweep",),
    ),
    "a grant never ends": Bug(
        _CORE + "records/grant.py",
        [('if part["tokens"] and part["ends"] / _MICROSECONDS > now', 'if part["tokens"]')],
        (
            "tests/sharing/test_principals.py::test_ended_grant_gives_no_tokens",
            "tests/sharing/test_principals.py::test_reshared_part_has_its_own_end",
        ),
    ),
    "any agent may write under any grant": Bug(
        _LUA + "10_memories.lua",
        [
            (
                "if not rm.contains(rm.owners_now(agent, request.owners), found[1]) then\n    lists =",
                "if false then\n    lists =",
            ),
        ],
        (
            "tests/sharing/test_sharing_races.py::test_principal_resolved_before_revoke_cannot_read_or_write_after",
            "tests/sharing/test_sharing_races.py::test_no_write_succeeds_after_revoke_returned",
        ),
    ),
    "a write acts as whom it names": Bug(
        _SERVER + "engine/request_context.py",
        [("    if caller.admin:\n        return replace(", "    if True:\n        return replace(")],
        ("tests/access/test_tokens.py::test_only_an_admin_may_write_for_others",),
    ),
    "quarantine hides nothing": Bug(
        _CORE + "records/scope.py",
        [
            (
                "return self.may_read(record.scope) and (since is None or record.updated_at < since)",
                "return self.may_read(record.scope)",
            )
        ],
        ("tests/security/test_quarantine.py::test_quarantined_agents_memories_are_visible_only_to_itself",),
    ),
    "any secret opens a token": Bug(
        _CORE + "records/token.py",
        [("found is None or not right or", "found is None or")],
        ("tests/access/test_tokens.py::test_every_invalid_token_gets_the_same_answer",),
    ),
    "a revoked token is accepted": Bug(
        _LUA + "70_tokens.lua",
        [
            ("  redis.call('HSET', keys[1], 'revoked', '1')\n", ""),
            ("  redis.call('HDEL', keys[1], 'hash', 'mac')\n", ""),
        ],
        ("tests/access/test_tokens.py::test_revoked_token_stops_working_mid_session",),
    ),
    "a token without a code is accepted": Bug(
        _CORE + "records/token.py",
        [("(revoked or check(token_id, fields, integrity) is None)", "True")],
        ("tests/security/test_authority_records.py::test_records_of_an_earlier_release_are_refused_until_adopted",),
    ),
    "a forged owner id counts": Bug(
        _CORE + "records/owners.py",
        [("tuple(one for one in raw.owners if failed[one] is None)", "raw.owners")],
        ("tests/security/test_authority_records.py::test_adopt_signs_no_record_with_a_wrong_code",),
    ),
    "a forged kept owner id is offered": Bug(
        _CORE + "records/owners.py",
        [("_failure(*where, Authority.KEPT, raw.kept_proofs, one) is None", "one")],
        ("tests/sharing/test_owner_codes.py::test_kept_code_gives_no_owner_id_and_an_owner_code_keeps_none",),
    ),
    "a changed grant counts": Bug(
        _CORE + "records/grant.py",
        [(" or grant_proof.check(integrity, namespace, agent, grant_id, entry):", ":")],
        ("tests/security/test_authority_records.py::test_adopt_signs_no_record_with_a_wrong_code",),
    ),
    "a token's scopes are not checked": Bug(
        _CORE + "records/access.py",
        [("return not self.scopes.isdisjoint(ALLOWED_BY[effect])", "return True")],
        ("tests/access/test_tokens.py::test_scope_allows_only_its_tools_and_admin_allows_all",),
    ),
    "arguments add no effects": Bug(
        _SERVER + "mcp/tools/tool_factory.py",
        [("if self.effects_of is not None:", "if False:")],
        ("tests/access/test_authority.py::test_call_is_refused_exactly_if_a_power_for_an_effect_is_missing",),
    ),
    "an admin reads as the agent it acts for": Bug(
        _SERVER + "engine/request_context.py",
        [("if not (self.caller.admin and self.caller.by):", "if True:")],
        ("tests/access/test_tokens.py::test_admin_acting_for_an_agent_sees_none_of_its_memories",),
    ),
    "an operator reads an agent's memories": Bug(
        _SERVER + "engine/principals.py",
        [("return principal.of_public() if caller.public_only else principal", "return principal")],
        ("tests/dashboard/test_dashboard_views.py::test_operator_of_the_name_of_an_agent_reads_public_texts_only",),
    ),
    "calls are not rate-limited": Bug(
        _SERVER + "access/gate.py",
        [("        self._rates.take(caller.namespace, caller.agent, calls)\n", "")],
        ("tests/access/test_tokens.py::test_rate_limited_agent_gets_retry_after_and_others_are_served",),
    ),
    "quotas are not enforced": Bug(
        _SERVER + "memories/quotas.py",
        [("if limit and then > limit and then > now:", "if False:")],
        ("tests/memories/test_quotas.py::test_refusal_over_the_quota_names_the_limit_and_the_remedy",),
    ),
    "unknown arguments are accepted": Bug(
        _SERVER + "contract/arguments.py",
        [('extra="forbid", hide_input_in_errors=True, frozen=True, allow_inf_nan=False', "frozen=True")],
        ("tests/mcp/test_tool_schemas.py",),
    ),
    # storage
    "a sealed value is not bound to its record": Bug(
        _CORE + "crypto/sealing.py",
        [
            ("encrypt(nonce, plain, head + self.bound)", "encrypt(nonce, plain, None)"),
            ("rest[_NONCE_BYTES:], head + self.bound)", "rest[_NONCE_BYTES:], None)"),
        ],
        ("tests/security/test_sealing.py",),
    ),
    "integrity codes are not compared": Bug(
        _CORE + "crypto/integrity.py",
        [
            (
                "return None if hmac.compare_digest(code, form) else IntegrityFailure.ALTERED",
                "return None",
            )
        ],
        ("tests/security/test_integrity.py",),
    ),
    "a NaN vector is stored": Bug(
        _LUA + "20_vectors.lua",
        [
            (
                "return vector and not vector.sealed and not rm.is_unit_vector(vector.bytes, vector.dimension)",
                "return false",
            )
        ],
        ("tests/isolation/test_isolation.py::test_invalid_vectors_do_not_affect_searches_of_others",),
    ),
    "seals are not linked": Bug(
        _SERVER + "security/audit/seals.py",
        [("before = GENESIS if chain is None else bytes.fromhex(chain)", "before = GENESIS")],
        ("tests/security/test_audit_chain.py",),
    ),
    "a store leaves no audit entry": Bug(
        _LUA + "10_memories.lua",
        [
            (_AUDITED + _EVENT, _EVENT),
        ],
        ("tests/security/test_audit.py::test_change_and_audit_entry_are_written_atomically",),
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
        _SERVER + "index/query_builder.py",
        [
            (
                'return f"-{_expired(query, now)}"',
                'return ""',
            )
        ],
        ("tests/search/test_query_builder.py", "tests/memories/test_memories.py"),
    ),
    # effects that happen once
    "an expected revision is not compared": Bug(
        _SERVER + "memories/update.py",
        [("if expected_rev is not None and old.rev != expected_rev:", "if False:")],
        ("tests/memories/test_memories.py::test_update_with_a_stale_revision_is_refused_and_changes_nothing",),
    ),
    "an update of an old revision is written": Bug(
        _LUA + "10_memories.lua",
        [
            ("if tonumber(found[2]) ~= request.rev then", "if false then"),
        ],
        ("tests/security/test_integrity.py::test_without_key_a_concurrent_change_is_not_overwritten",),
    ),
    "an idempotency key is not looked up": Bug(
        _LUA + "10_memories.lua",
        [
            (
                "  local earlier = idempotency and rm.replay(idem, 'memory_id'",
                "  local earlier = false and rm.replay(idem, 'memory_id'",
            )
        ],
        ("tests/memories/test_memories.py::test_idempotency_key_stores_once",),
    ),
    "an idempotency key accepts any payload": Bug(
        _LUA + "00_common.lua",
        [("  if seen.payload ~= idempotency.payload then return {status = 'idempotency_conflict'} end\n", "")],
        ("tests/memories/test_memories.py::test_idempotency_key_with_another_payload_is_refused",),
    ),
    "a late vector is written to another revision": Bug(
        _LUA + "20_vectors.lua",
        [("if not model or found[1] ~= tostring(item.rev) or found[2] ~= item.hash then", "if not model then")],
        ("tests/memories/test_commit.py",),
    ),
    "a late vector restores a deleted memory": Bug(
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
    "a text that changed since it was read is queued again": Bug(
        _LUA + "20_vectors.lua",
        [("if found[1] == tostring(item.rev) and found[2] == item.hash then", "if found[1] then")],
        ("tests/memories/test_embed_jobs.py::test_text_read_before_an_update_is_not_queued_for_its_vector",),
    ),
    "a job is acknowledged before its vector is there": Bug(
        _EMBEDDER + "streams/groups.py",
        [('{stream: ">"}, count=count, block=block_ms)', '{stream: ">"}, count=count, block=block_ms, noack=True)')],
        ("tests/embedder/test_embedder_recovery.py::test_killed_sidecar_loses_no_job",),
    ),
    "a job that nobody can do is tried for ever": Bug(
        _EMBEDDER + "streams/jobs.py",
        [("            elif deliveries > MAX_DELIVERIES:\n", "            elif deliveries > 10**9:\n")],
        ("tests/embedder/test_embedder_recovery.py::test_job_delivered_five_times_is_buried_without_inference",),
    ),
    "any token holds a lease": Bug(
        _LUA + "50_tasks.lua",
        [("task.lease_token == token and ", "")],
        ("tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour",),
    ),
    "a lease never ends": Bug(
        _LUA + "50_tasks.lua",
        [("\n    and tonumber(task.lease_until) * 1000000 > now", "")],
        ("tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour",),
    ),
    "a task for one agent goes to others": Bug(
        _LUA + "37_team.lua",
        [("  if kind.only ~= '' and kind.only ~= agent.name then return false end\n", "")],
        ("tests/tasks/test_task_mutations.py::test_unchanged_library_has_every_behaviour",),
    ),
    # answers
    "an answer never reports that it is partial": Bug(
        _SERVER + "contract/answer.py",
        [
            (
                "    reasons = list(dict.fromkeys(warnings))\n",
                "    return None\n    reasons = list(dict.fromkeys(warnings))\n",
            )
        ],
        ("tests/search/test_search.py::test_memory_without_a_vector_is_found_by_keywords_as_partial",),
    ),
    "a search cut short counts as complete": Bug(
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
