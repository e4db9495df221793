"""Settings of who may call: bearer tokens of this server, or those of an OAuth 2.1 authorization server."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
"""A list, which a variable may give as `a,b`."""


class AuthSettings(BaseModel):
    """Who may call. `off` believes the name that a client gives, and is for loopback alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    mode: Literal["off", "tokens", "oauth"] = Field(
        default="off", description="off, tokens of `redis-memory agents token`, or those of an OAuth server"
    )
    issuer: str | None = Field(default=None, description="URL of the OAuth server, as in the tokens' `iss`")
    audience: str | None = Field(
        default=None, description="this server as in the tokens' `aud`; clients are told of it if it is a URL"
    )
    jwks: str | None = Field(default=None, description="URL or file of the OAuth server's public keys, as JWKS")
    agent_claim: str = Field(default="sub", min_length=1, description="claim that names the agent")
    namespace_claim: str = Field(
        default="namespace", min_length=1, description="claim that names the namespace; without it, the server's own"
    )
    leeway_seconds: float = Field(default=30.0, ge=0, le=300, description="how far the clocks may differ")

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
                raise ValueError(f"{name} must be https, or who listens in could forge tokens")
        if urlsplit(self.issuer or "").scheme not in {"http", "https"}:
            raise ValueError("issuer must be a URL")
        return self
