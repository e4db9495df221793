"""Checks OAuth 2.1 access tokens: JWTs signed with the authorization server's published keys.

The first token loads PyJWT and the keys, to keep the start fast.
"""

from __future__ import annotations

import logging
import re
import time
from typing import Any

from memory_core.errors import IssuerUnavailable
from memory_core.records.access import Access, Scope, known_scopes
from memory_core.records.names import check_agent_name, check_name
from memory_core.settings.auth import AuthSettings
from memory_server.access.issuer_keys import IssuerKeys

log = logging.getLogger(__name__)
LONGEST_TOKEN = 16_384
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class OAuthVerifier:
    """Checks the tokens of one issuer for one audience."""

    def __init__(self, settings: AuthSettings, namespace: str) -> None:
        assert settings.jwks
        self._settings = settings
        self._types = {_type_of({"typ": each}) for each in settings.token_types}
        self._namespace = namespace
        self._keys = IssuerKeys(settings.jwks)

    async def verify(self, token: str) -> Access | None:
        """Return what a token grants, None if it is invalid; raises IssuerUnavailable without the issuer's keys."""
        import jwt

        if len(token) > LONGEST_TOKEN:
            return None
        try:
            header = jwt.get_unverified_header(token)
            if _type_of(header) not in self._types:
                return None
            if (key := await self._keys.find(header.get("kid"))) is None:
                return None
            claims = jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud"]},
            )
            return self._access(claims)
        except IssuerUnavailable:
            raise
        except Exception as error:  # a hostile token, or an unsuitable key, can raise anything
            log.info("a token was refused: %s", type(error).__name__)
            return None

    def _access(self, claims: dict[str, Any]) -> Access | None:
        agent, namespace = claims.get(self._settings.agent_claim), claims.get(self._settings.namespace_claim)
        scopes = _scopes(claims)
        if not isinstance(agent, str) or not isinstance(namespace, str | None) or not scopes:
            return None
        if not self._is_known_client(claims) or claims["exp"] - time.time() > self._longest_seconds:
            return None
        namespace = self._namespace if namespace is None else check_name(namespace, "namespace")
        jti = claims.get("jti")
        token_id = jti if isinstance(jti, str) and _ID.fullmatch(jti) else ""
        return Access(check_agent_name(agent), namespace, scopes, float(claims["exp"]), token_id)

    @property
    def _longest_seconds(self) -> float:
        return self._settings.max_token_seconds + self._settings.leeway_seconds

    def _is_known_client(self, claims: dict[str, Any]) -> bool:
        """Check the client that the token was issued to: `azp` and `client_id` agree and are among the known ones."""
        named = {claims[name] for name in ("azp", "client_id") if name in claims}
        if len(named) > 1:
            return False
        return not self._settings.clients or (len(named) == 1 and named <= set(self._settings.clients))


def _type_of(header: dict[str, Any]) -> str:
    """The media type of a token, without the prefix that RFC 7515 allows to leave out."""
    return str(header.get("typ", "")).lower().removeprefix("application/")


def _scopes(claims: dict[str, Any]) -> frozenset[Scope]:
    """Read `scope` (RFC 9068) or `scp`: a list, or words separated by spaces."""
    given: Any = claims.get("scope", claims.get("scp", ""))
    names = given.split() if isinstance(given, str) else given if isinstance(given, list) else []
    return known_scopes(name for name in names if isinstance(name, str))
