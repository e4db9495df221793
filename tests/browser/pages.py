"""Pages in a real Chromium. They fail a test on any console error."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = Path(__file__).parent / "screenshots"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
DESKTOP, PHONE = (1280, 860), (390, 844)


@asynccontextmanager
async def chromium() -> AsyncGenerator[Browser]:
    """Run the browser."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=OPTIONS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False, allowed: tuple[str, ...] = ()
) -> AsyncGenerator[Page]:
    """Open a page in a fresh browser context.

    Fails on console messages that are not `allowed` and on requests to other hosts.
    """
    problems: list[str] = []
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    page = await context.new_page()
    page.set_default_timeout(20_000)

    def check_message(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(part in message.text for part in allowed):
            problems.append(f"{message.type}: {message.text}")

    def check_request(request: Any) -> None:
        if not request.url.startswith((url.split("/", 3)[0] + "//" + url.split("/")[2], "data:")):
            problems.append(f"request to another host: {request.url}")

    page.on("console", check_message)
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("request", check_request)
    try:
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert not problems, problems


async def wait_for_view(page: Page, view: str) -> None:
    """Wait until a view shows its data."""
    signs = {
        "overview": ".chart canvas", "memories": ".hit", "map": "[data-drawn]", "team": ".lane .task",
        "sharing": ".grant", "audit": "tbody tr",
    }  # fmt: skip
    await expect(page.locator(signs[view]).first).to_be_visible()
    await expect(page.get_by_text("Opening…")).to_have_count(0)


async def shoot(page: Page, name: str) -> None:
    """Save a screenshot."""
    SHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
