"""The dashboard's door on the real stack: whose requests it takes, and who is let in."""

from __future__ import annotations

import httpx2
import pytest
from support import dashboard_fixtures
from support.auth_helpers import issued
from support.dashboard_helpers import PAGE, Browser, log_in

from memory_server.access.tokens import revoke_token
from memory_server.dashboard import sessions

guarded = dashboard_fixtures.guarded
page = dashboard_fixtures.page
stranger = dashboard_fixtures.stranger


# What every answer carries


@pytest.mark.parametrize("path", ["", "static/app.js", "api/session", "api/none", "static/none.js"])
async def test_every_answer_forbids_inline_scripts_frames_and_other_hosts(page: Browser, path: str) -> None:
    headers = (await page.get(path)).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    told = (headers["x-content-type-options"], headers["referrer-policy"], headers["x-frame-options"])
    assert told == ("nosniff", "no-referrer", "DENY")


async def test_what_the_api_answers_is_kept_nowhere(page: Browser) -> None:
    assert (await page.get("api/session")).headers["cache-control"] == "no-store"


# Whose requests are taken


@pytest.mark.parametrize(
    "headers",
    [
        {"x-memory-dashboard": ""},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:1"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "evil.example"},
        {"content-type": "text/plain"},
    ],
)
async def test_requests_of_other_sites_are_refused(page: Browser, headers: dict[str, str]) -> None:
    for path in ("call/store_memory", "login", "logout"):
        response = await page.post(path, {"content": "forged"}, **headers)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "forbidden")
    assert (await page.call("dashboard_census"))["total"] == 0


async def test_the_event_stream_is_not_for_other_sites_or_names(page: Browser) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert (await page.get("api/events", **headers)).status_code == 403


@pytest.mark.parametrize("body", ["[]", "1", "{", "nul", "", '{"a":' * 5000])
async def test_what_is_no_json_object_is_refused(page: Browser, body: str) -> None:
    url = f"{page.server.url}/api/call/memory_stats{page.scope}"
    response = await page.client.post(url, content=body, headers={**PAGE, "content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_argument")


async def test_a_body_beyond_the_limit_is_refused(page: Browser) -> None:
    most = page.server.runtime.settings.limits.body_bytes
    response = await page.post("call/store_memory", {"content": "x" * most})
    assert response.json()["error"]["code"] == "invalid_argument"


async def test_unknown_tools_and_arguments_are_refused(page: Browser) -> None:
    assert await page.refused("no_such_tool") == (404, "not_found")
    assert await page.refused("memory_stats", surprise=1) == (400, "invalid_argument")
    assert await page.refused("dashboard_map", limit=20_001) == (400, "invalid_argument")


# Logging in


async def test_without_a_token_nothing_is_shown(stranger: Browser) -> None:
    assert (await stranger.get("api/session")).json()["login"] is True
    for tool in ("semantic_search", "dashboard_census", "dashboard_map", "dashboard_audit"):
        assert await stranger.refused(tool) == (401, "unauthenticated")
    assert (await stranger.get("api/events")).status_code == 401


async def test_a_wrong_token_is_refused_and_opens_nothing(stranger: Browser, namespace: str) -> None:
    good = await issued(stranger.server, "alice", namespace)
    for token in (good[:-1] + ("A" if good[-1] != "A" else "B"), "rm_x", "", "x" * 9000):
        response = await stranger.post("login", {"token": token})
        assert (response.status_code, "set-cookie" in response.headers) == (401, False)
    assert (await stranger.post("login", {"token": 1})).status_code == 400
    assert await stranger.refused("memory_stats") == (401, "unauthenticated")


async def test_a_token_opens_a_session_that_scripts_and_other_sites_cannot_use(
    stranger: Browser, namespace: str
) -> None:
    token = await issued(stranger.server, "alice", namespace)
    response = await stranger.log_in({"token": token})
    cookie = response.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert token not in cookie
    about = (await stranger.get("api/session")).json()
    assert (about["agent"], about["namespace"], about["operator"]) == ("alice", namespace, False)
    assert (await stranger.call("store_memory", content="Mine.", wait=False))["memory_id"]


async def is_let_in(page: Browser, cookie: str, value: str, page_key: str) -> bool:
    """Whether a cookie and a page key open a session."""
    async with httpx2.AsyncClient(headers={"cookie": f"{cookie}={value}"}) as client:
        other = Browser(page.server, client)
        other.page_key = page_key
        return (await other.post("call/memory_stats")).status_code == 200


async def test_a_forged_cookie_or_page_key_opens_nothing(stranger: Browser, namespace: str) -> None:
    await log_in(stranger, "alice", namespace)
    ((name, value),) = stranger.client.cookies.items()
    key = stranger.page_key
    for forged in (value[:-2] + ("AA" if value[-2:] != "AA" else "BB"), "", "x" * 3000, value + "A"):
        assert not await is_let_in(stranger, name, forged, key)
    for wrong in (key[:-2] + ("AA" if key[-2:] != "AA" else "BB"), "", "x" * 3000, key + "A", value):
        assert not await is_let_in(stranger, name, value, wrong)
    assert await is_let_in(stranger, name, value, key)


async def test_a_session_ends_with_its_token_at_once(stranger: Browser, namespace: str) -> None:
    token = await log_in(stranger, "alice", namespace)
    await stranger.call("dashboard_census")
    await revoke_token(stranger.server.service.backend, token.split("_")[1])
    assert await stranger.refused("dashboard_census") == (401, "unauthenticated")


async def test_after_logging_out_the_cookie_is_worth_nothing(stranger: Browser, namespace: str) -> None:
    await log_in(stranger, "alice", namespace)
    ((name, value),) = stranger.client.cookies.items()
    await stranger.post("logout")
    assert not await is_let_in(stranger, name, value, stranger.page_key)


async def test_an_idle_session_ends(stranger: Browser, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await log_in(stranger, "alice", namespace)
    monkeypatch.setattr(sessions, "IDLE_SECONDS", -1.0)
    assert await stranger.refused("memory_stats") == (401, "unauthenticated")


async def test_a_session_acts_as_its_token_and_nobody_else(stranger: Browser, namespace: str) -> None:
    await log_in(stranger, "alice", namespace)
    stranger.scope = "?agent=bob"
    assert await stranger.refused("memory_stats") == (403, "forbidden")
    stranger.scope = "?namespace=other"
    assert await stranger.refused("memory_stats") == (403, "forbidden")
