"""Sends what a browser with one dashboard page sends, and logs in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx2

from memory_server.access.operator_login import admit_once
from memory_server.dashboard.identity import PAGE_KEY_HEADER, PAGE_KEY_PARAMETER
from support.auth_helpers import issued
from support.stack import Server

PAGE = {"x-memory-dashboard": "1"}


class Browser:
    """A browser with one page of the dashboard."""

    def __init__(self, server: Server, client: httpx2.AsyncClient, scope: str = "") -> None:
        self.server = server
        self.client = client
        self.scope = scope
        self.page_key = ""
        """What the page keeps of its session, besides the cookie."""

    @property
    def _proof(self) -> dict[str, str]:
        return {PAGE_KEY_HEADER: self.page_key} if self.page_key else {}

    async def log_in(self, body: Any) -> httpx2.Response:
        """Post a token or a one-time key, and keep the key of the page."""
        response = await self.post("login", body)
        self.page_key = response.json().get("page_key", self.page_key)
        return response

    async def post(self, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        """Post as a page of the dashboard does."""
        url = f"{self.server.url}/api/{path}{self.scope}"
        return await self.client.post(
            url, json={} if body is None else body, headers={**PAGE, **self._proof, **headers}
        )

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        """Fetch a path."""
        return await self.client.get(f"{self.server.url}/{path}{self.scope}", headers={**self._proof, **headers})

    def stream(self, timeout: float = 20) -> AbstractAsyncContextManager[httpx2.Response]:
        """Open the stream of events, with the key in its URL as a browser must."""
        scope = httpx2.QueryParams(self.scope.removeprefix("?"))
        scope = scope.set(PAGE_KEY_PARAMETER, self.page_key) if self.page_key else scope
        return self.client.stream("GET", f"{self.server.url}/api/events", params=scope, timeout=timeout)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool that must succeed."""
        response = await self.post(f"call/{tool}", arguments)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, tool: str, **arguments: Any) -> tuple[int, str]:
        """Call a tool that must refuse."""
        response = await self.post(f"call/{tool}", arguments)
        return response.status_code, response.json()["error"]["code"]


async def log_in(page: Browser, agent: str, namespace: str, scopes: Sequence[str] = ("read", "write", "tasks")) -> str:
    """Log in with a new token of an agent."""
    token = await issued(page.server, agent, namespace, scopes)
    assert (await page.log_in({"token": token})).status_code == 200
    return token


async def operate(page: Browser, namespace: str) -> str:
    """Log in as operator with a one-time URL, on a page that names no agent; return its key."""
    page.scope = ""
    key = await admit_once(page.server.service.backend, namespace)
    response = await page.log_in({"key": key})
    assert response.status_code == 200, response.text
    return key


async def events_until(page: Browser, until: str) -> list[dict[str, Any]]:
    """Read the stream until an event about `until` arrives; return all events."""
    seen: list[dict[str, Any]] = []
    async with page.stream() as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                seen += json.loads(line[6:]).get("events", [])
            if any(event["id"] == until for event in seen):
                return seen
    raise AssertionError("the stream ended")
