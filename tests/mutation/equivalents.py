"""Mutants that no test can detect because they behave like the original, each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[tuple[str, str], str] = {
    (
        "redis/functions/52_claims.lua",
        "return one.score < other.score or (one.score == other.score and one.id < other.id) -> "
        "return one.score < other.score or (one.score == other.score and one.id <= other.id)",
    ): "two different tasks never have the same id",
    (
        "redis/functions/60_agents.lua",
        "if #request.fields > 0 then redis.call('HSET', keys[1], unpack(request.fields)) end -> "
        "if #request.fields > 1 then redis.call('HSET', keys[1], unpack(request.fields)) end",
    ): "fields come in pairs of name and value",
    (
        "redis/functions/31_selections.lua",
        "if not found[1] or rm.has_expired(found[3]) then return nil, id end -> "
        "if not found[2] or rm.has_expired(found[3]) then return nil, id end",
    ): "a memory that has an owner has a scope",
    (
        "redis/functions/10_memories.lua",
        "if not found[1] or rm.has_expired(found[3]) then return {status = 'gone'} end -> "
        "if not found[2] or rm.has_expired(found[3]) then return {status = 'gone'} end",
    ): "a memory that has an owner has a revision",
    (
        "server/memory_server/security/vault.py",
        "time.monotonic() - known.read_at < REMEMBER_SECONDS -> (time.monotonic() - known.read_at <= REMEMBER_SECONDS)",
    ): "one tick of the clock makes no difference",
    (
        "server/memory_core/records/token.py",
        "found is None or not right or found[0].revoked or found[0].expires_at <= redis_time.now() -> "
        "(not right or found[0].revoked or found[0].expires_at <= redis_time.now())",
    ): "differs only for a secret whose SHA-256 is 64 zeros",
    (
        "redis/functions/70_tokens.lua",
        "return {revoked = true} -> return {revoked = false}",
    ): "no caller reads this answer",
}
