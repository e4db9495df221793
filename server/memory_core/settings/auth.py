"""Settings of authentication: bearer tokens of this server or of an OAuth 2.1 authorization server."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from memory_core.settings.groups import SettingsGroup

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list; an environment variable may write it as `a,b`."""


class AuthSettings(SettingsGroup):
    """How callers are authenticated. `off` trusts the name that a client gives, and works on loopback only."""

    mode: Literal["off", "tokens", "oauth"] = Field(
        default="off", description="off, tokens of `redis-memory agents token`, or tokens of an OAuth server"
    )
    issuer: str | None = Field(default=None, description="URL of the OAuth server, as in the tokens' `iss`")
    audience: str | None = Field(default=None, description="this server in the tokens' `aud`; clients see a URL")
    jwks: str | None = Field(default=None, description="URL or file of the OAuth server's public keys, as JWKS")
    agent_claim: str = Field(default="sub", min_length=1, description="claim that names the agent")
    namespace_claim: str = Field(
        default="namespace", min_length=1, description="claim that names the namespace; default: the server's namespace"
    )
    token_types: Names = Field(
        default=("at+jwt",),
        min_length=1,
        description="accepted `typ` of OAuth tokens; `at+jwt,JWT` for servers that do not follow RFC 9068",
    )
    clients: Names = Field(
        default=(), description="OAuth clients (`azp` or `client_id`) whose tokens are accepted; default: all"
    )
    max_token_seconds: float = Field(
        default=86_400.0, ge=60, description="OAuth tokens that are valid for longer are refused"
    )
    leeway_seconds: float = Field(default=30.0, ge=0, le=300, description="how many seconds the clocks may differ")

    @model_validator(mode="after")
    def _whole(self) -> AuthSettings:
        if self.mode != "oauth":
            return self
        missing = [name for name in ("issuer", "audience", "jwks") if not getattr(self, name)]
        if missing:
            raise ValueError(f"mode oauth needs {', '.join(missing)} too")
        for name in ("issuer", "jwks"):
            url = urlsplit(getattr(self, name))
            if url.scheme == "http" and url.hostname not in _LOOPBACK:
                raise ValueError(f"{name} must be https, or an eavesdropper could forge tokens")
        if urlsplit(self.issuer or "").scheme not in {"http", "https"}:
            raise ValueError("issuer must be a URL")
        return self
