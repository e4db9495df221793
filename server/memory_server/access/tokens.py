"""Issues, lists and revokes bearer tokens, for operators."""

from __future__ import annotations

from typing import Any

from memory_core.errors import InvalidArgument, NotFound, echo
from memory_core.records import token as tokens
from memory_core.records.access import Scope
from memory_core.records.audit_entry import system_entry
from memory_core.records.ids import is_id
from memory_core.records.keys import Keys, token_key
from memory_core.records.names import check_agent_name, check_name
from memory_core.records.token import Token
from memory_server.engine.damage import surviving
from memory_server.engine.redis_backend import Backend

LONGEST_SECONDS = 10 * 365 * 86_400.0


async def issue_token(
    backend: Backend, *, agent: str, namespace: str, scopes: frozenset[Scope], seconds: float
) -> tuple[Token, str]:
    """Issue a token and return its text, which cannot be read again; raises InvalidArgument."""
    check_agent_name(agent)
    check_name(namespace, "namespace")
    if not 0 < seconds <= LONGEST_SECONDS:
        raise InvalidArgument("a token's lifetime must be over 0 seconds and at most ten years", hint="such as 90d")
    token, secret = tokens.new_token(agent, namespace, scopes, seconds)
    await _note(backend, token, "token_issue", expires_at=token.expires_at)
    fields = [part for pair in token.fields(secret, backend.integrity).items() for part in pair]
    await backend.write("rm1_token_issue", [token_key(token.id)], fields=fields, expires_at=token.expires_at)
    return token, tokens.text_of(token, secret)


async def list_tokens(backend: Backend, namespace: str) -> list[Token]:
    """List the unexpired tokens of a namespace, oldest first."""
    keys = Keys(check_name(namespace, "namespace"))

    found = list[Token]()
    for raw in await backend.read(lambda client: client.zrange(keys.tokens, 0, -1)):
        async with surviving(backend, keys.tokens, raw):
            token_id = raw.decode()
            pair = await backend.read(
                lambda client, token_id=token_id: tokens.load(client, token_id, backend.integrity)
            )
            found += [pair[0]] if pair else []
    return sorted(found, key=lambda token: token.id)


async def revoke_token(backend: Backend, token_id: str) -> Token:
    """End a token immediately; raises NotFound if there is none or it has expired."""
    found = None
    if is_id(token_id):
        found = await backend.read(lambda client: tokens.load(client, token_id, backend.integrity))
    if found is None:
        raise NotFound(f"no token {echo(token_id)}", hint="`redis-memory agents tokens` lists them")
    token, _ = found
    await backend.write("rm1_token_revoke", [token_key(token.id)], repeatable=True, namespace=token.namespace)
    await _note(backend, token, "token_revoke", "rm1_token_note_brief")
    return token


async def _note(backend: Backend, token: Token, op: str, function: str = "rm1_token_note", **request: Any) -> None:
    keys = Keys(token.namespace)
    await backend.write(
        function,
        [keys.audit, keys.counters, keys.tokens],
        id=token.id,
        audit=system_entry("console", op, [token.id, token.agent]),
        **request,
    )
