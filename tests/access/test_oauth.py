"""OAuth access tokens are accepted only if signed by the issuer's key, for this server and not expired."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as new_ec_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as new_rsa_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning
from support.auth_helpers import post
from support.stack import Refused, Server, Stack, in_own_task, serving
from support.stdio import stdio_agent

from memory_core.errors import InvalidArgument
from memory_core.settings.settings import Settings

ISSUER, AUDIENCE = "https://login.example", "https://memory.example/mcp"


@dataclass
class Issuer:
    """The keys of an OAuth server."""

    rsa: RSAPrivateKey = field(default_factory=lambda: new_rsa_key(65537, 2048))
    ec: Any = field(default_factory=lambda: new_ec_key(SECP256R1()))
    free: RSAPrivateKey = field(default_factory=lambda: new_rsa_key(65537, 2048))
    weak: RSAPrivateKey = field(default_factory=lambda: new_rsa_key(65537, 1024))
    stranger: RSAPrivateKey = field(default_factory=lambda: new_rsa_key(65537, 2048))

    def jwks(self) -> str:
        """Return the public keys."""
        rsa = json.loads(RSAAlgorithm.to_jwk(self.rsa.public_key())) | {"kid": "rsa", "use": "sig", "alg": "RS256"}
        free, weak = (json.loads(RSAAlgorithm.to_jwk(key.public_key())) for key in (self.free, self.weak))
        ec = json.loads(ECAlgorithm.to_jwk(self.ec.public_key())) | {"kid": "ec", "use": "sig", "alg": "ES256"}
        return json.dumps({"keys": [rsa, ec, free | {"kid": "free"}, weak | {"kid": "weak"}]})

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Return valid claims with changes; None removes a claim."""
        now = int(time.time())
        good = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "nbf": now - 1, "scope": "read write"}
        return {name: value for name, value in (good | changes).items() if value is not None}

    def token(
        self,
        *,
        kid: str | None = "rsa",
        key: Any = None,
        algorithm: str = "RS256",
        typ: str | None = "at+jwt",
        **changes: Any,
    ) -> str:
        """Sign a token."""
        headers = {"typ": typ} if kid is None else {"kid": kid, "typ": typ}
        return jwt.encode(self.claims(**changes), key or self.rsa, algorithm=algorithm, headers=headers)

    def signed_by_hand(self, header: dict[str, Any], key: bytes) -> str:
        """Create a token that PyJWT refuses to create."""
        head, body = (_base64(json.dumps(part).encode()) for part in (header, self.claims()))
        signature = hmac.digest(key, f"{head}.{body}".encode(), hashlib.sha256) if key else b""
        return f"{head}.{body}.{_base64(signature)}"


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


def settings_of(jwks: str) -> dict[str, Any]:
    return {"mode": "oauth", "issuer": ISSUER, "audience": AUDIENCE, "jwks": jwks, "leeway_seconds": 0}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def oauth_server(
    stack: Stack, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncGenerator[Server]:
    """A server that accepts the issuer's tokens."""
    path = tmp_path_factory.mktemp("oauth") / "jwks.json"
    path.write_text(issuer.jwks())
    auth = settings_of(str(path))
    async with in_own_task(serving(stack.redis.url, auth=auth, namespace="oauth", embed_wait_seconds=15.0)) as server:
        yield server


# Accepted tokens


async def test_agent_namespace_and_scopes_come_from_the_claims(
    oauth_server: Server, issuer: Issuer, namespace: str
) -> None:
    token = issuer.token(namespace=namespace)
    async with oauth_server.agent("alice", namespace, token=token) as agent:
        assert (await agent.call("retrieve_memory", memory_id=await agent.store("Mine.")))["memory"][
            "writer"
        ] == "alice"
        with pytest.raises(Refused, match="scope tasks"):
            await agent.call("get_pending_tasks")
    async with oauth_server.agent("bob", namespace, token=token) as agent:
        with pytest.raises(Refused, match="not that of your token"):
            await agent.call("memory_stats")


async def test_token_without_namespace_uses_the_servers_namespace(oauth_server: Server, issuer: Issuer) -> None:
    async with oauth_server.agent("alice", "oauth", token=issuer.token()) as agent:
        await agent.call("memory_stats")


async def test_other_key_types_scope_lists_and_audiences_are_accepted(oauth_server: Server, issuer: Issuer) -> None:
    by_ec = issuer.token(kid="ec", key=issuer.ec, algorithm="ES256")
    as_list = issuer.token(scope=None, scp=["read", "openid"], aud=["https://else.example", AUDIENCE])
    assert [(await post(oauth_server, token)).status_code for token in (by_ec, as_list)] == [200, 200]


async def test_metadata_names_the_authorization_server(oauth_server: Server) -> None:
    refused = await post(oauth_server, None)
    assert "resource_metadata=" in refused.headers["www-authenticate"]
    async with httpx2.AsyncClient() as client:
        metadata = (await client.get(f"{oauth_server.url}/.well-known/oauth-protected-resource/mcp")).json()
    assert (metadata["resource"], metadata["authorization_servers"]) == (AUDIENCE, [ISSUER])


async def test_oauth_token_is_checked_on_stdio(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(issuer.jwks())
    auth = json.dumps(settings_of(str(path)))
    for agent, code in (("alice", None), ("bob", "forbidden")):
        environment = {"MEMORY_AUTH": auth, "MEMORY_TOKEN": issuer.token(), "MEMORY_NAMESPACE": "default"}
        async with stdio_agent(agent, REDIS_URL=stack.redis.url, **environment) as client:
            answer = await client.raw("gpu_status")
        assert (answer.structured_content or {}).get("error", {}).get("code") == code


async def test_type_with_the_media_prefix_and_keys_without_algorithm_are_accepted(
    oauth_server: Server, issuer: Issuer
) -> None:
    prefixed = issuer.token(typ="application/AT+JWT")
    free = [issuer.token(kid="free", key=issuer.free, algorithm=each) for each in ("RS256", "PS512")]
    assert [(await post(oauth_server, token)).status_code for token in (prefixed, *free)] == [200, 200, 200]


async def test_settings_name_token_types_and_clients(stack: Stack, issuer: Issuer, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_text(issuer.jwks())
    auth = settings_of(str(path)) | {"token_types": "at+jwt,JWT", "clients": "web,cli"}
    cases = {
        issuer.token(typ="JWT", azp="web"): 200,
        issuer.token(client_id="cli", azp="cli"): 200,
        issuer.token(client_id="other"): 401,
        issuer.token(): 401,
    }
    async with serving(stack.redis.url, auth=auth) as server:
        assert [(await post(server, token)).status_code for token in cases] == list(cases.values())


# Refused tokens


BAD_CLAIMS: dict[str, dict[str, Any]] = {
    "expired": {"exp": 1},
    "without expiry": {"exp": None},
    "not yet valid": {"nbf": 4_000_000_000},
    "wrong audience": {"aud": "https://else.example"},
    "no audience": {"aud": None},
    "wrong issuer": {"iss": "https://evil.example"},
    "no issuer": {"iss": None},
    "no scope": {"scope": None},
    "only unknown scopes": {"scope": "openid profile"},
    "scope of the wrong type": {"scope": {"read": True}},
    "no agent": {"sub": None},
    "invalid agent name": {"sub": "Alice Smith"},
    "agent with a colon": {"sub": "a}:b"},
    "invalid namespace name": {"namespace": "*"},
    "namespace that is not text": {"namespace": 7},
    "name of the operator": {"sub": "operator"},
    "name of the console": {"sub": "console"},
    "name of the server": {"sub": "server"},
    "lifetime beyond a day": {"exp": 4_000_000_000},
    "two clients": {"azp": "one", "client_id": "two"},
    "client that is not text": {"azp": ["one"]},
}


@pytest.mark.parametrize("case", BAD_CLAIMS)
async def test_token_with_wrong_claims_is_refused(oauth_server: Server, issuer: Issuer, case: str) -> None:
    assert (await post(oauth_server, issuer.token(**BAD_CLAIMS[case]))).status_code == 401


def by_weak_key(issuer: Issuer) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)
        return issuer.token(kid="weak", key=issuer.weak)


def forged(issuer: Issuer) -> dict[str, str]:
    public = issuer.rsa.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    good = issuer.token()
    head, _, signature = good.split(".")
    claims = _base64(json.dumps(issuer.claims(sub="root", scope="admin")).encode())
    deep = _base64(b'{"alg":"RS256","kid":' + b"[" * 5000 + b"]" * 5000 + b"}")
    own_key = json.loads(RSAAlgorithm.to_jwk(issuer.stranger.public_key()))
    return {
        "by another key": issuer.token(key=issuer.stranger),
        "by an unknown key": issuer.token(kid="none-such"),
        "without key id, where there are two": issuer.token(kid=None),
        "with its own key in the header": jwt.encode(
            issuer.claims(), issuer.stranger, algorithm="RS256", headers={"jwk": own_key, "typ": "at+jwt"}
        ),
        "alg none": issuer.signed_by_hand({"alg": "none", "typ": "at+jwt", "kid": "rsa"}, b""),
        "alg None": issuer.signed_by_hand({"alg": "None", "typ": "at+jwt", "kid": "rsa"}, b""),
        "public key as a shared secret": issuer.signed_by_hand({"alg": "HS256", "typ": "at+jwt", "kid": "rsa"}, public),
        "key of another kind": issuer.signed_by_hand({"alg": "ES256", "typ": "at+jwt", "kid": "rsa"}, b"x"),
        "alg that is no text": issuer.signed_by_hand({"alg": ["RS256"], "typ": "at+jwt", "kid": "rsa"}, b"x"),
        "other claims under a good signature": f"{head}.{claims}.{signature}",
        "no signature": f"{head}.{claims}.",
        "deeply nested": f"{deep}.{claims}.{signature}",
        "too long": good + "A" * 20_000,
        "ID token": issuer.token(typ="JWT"),
        "without a type": issuer.token(typ=None),
        "logout token": issuer.token(typ="logout+jwt"),
        "by another algorithm than the key's": issuer.token(algorithm="PS256"),
        "by a short RSA key": by_weak_key(issuer),
        "no token": "a.b.c",
        "a token of ours": "rm_01m81jxkb8kev4f14rcpcbrr37_" + "A" * 43,
    }


async def test_forged_token_is_refused_like_an_expired_one(oauth_server: Server, issuer: Issuer) -> None:
    expired = await post(oauth_server, issuer.token(exp=1))
    for case, token in forged(issuer).items():
        answer = await post(oauth_server, token)
        assert (answer.status_code, answer.text) == (401, expired.text), case


# The issuer's keys


@dataclass
class Published:
    """The issuer's keys, served over HTTP."""

    url: str
    body: str
    asked: int = 0


@pytest.fixture
def published(issuer: Issuer) -> Generator[Published]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked += 1
            self.send_response(200 if found.body else 500)
            self.end_headers()
            self.wfile.write(found.body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Published(f"http://127.0.0.1:{server.server_port}/jwks", issuer.jwks())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


async def test_keys_are_fetched_once_whatever_key_ids_tokens_name(
    stack: Stack, issuer: Issuer, published: Published
) -> None:
    async with serving(stack.redis.url, auth=settings_of(published.url)) as server:
        assert published.asked == 0
        assert (await post(server, issuer.token())).status_code == 200
        for number in range(5):
            assert (await post(server, issuer.token(kid=f"guess-{number}"))).status_code == 401
        assert (await post(server, issuer.token())).status_code == 200
        assert published.asked == 1


async def test_without_issuer_keys_callers_must_retry_later(stack: Stack, issuer: Issuer, published: Published) -> None:
    published.body = ""
    async with serving(stack.redis.url, auth=settings_of(published.url)) as server:
        answer = await post(server, issuer.token())
        assert (answer.status_code, answer.json()["error"]) == (503, "issuer_unavailable")
        assert int(answer.headers["retry-after"]) >= 1


# Settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"issuer": None}, "needs issuer"),
        ({"audience": None}, "needs audience"),
        ({"jwks": None}, "needs jwks"),
        ({"jwks": "http://login.example/jwks"}, "must be https"),
        ({"issuer": "login"}, "must be a URL"),
    ],
)
def test_incomplete_oauth_settings_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Settings.load(auth=settings_of(str(tmp_path / "jwks.json")) | change)
