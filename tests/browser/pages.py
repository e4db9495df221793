"""A real Chromium for tests: pages that fail a test for anything that the browser complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

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
    """Open a page in a browser of nobody; afterwards nothing may have gone to the console but what is `allowed`,
    and nothing may have been asked of any other host."""
    complaints: list[str] = []
    context = await browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    page = await context.new_page()
    page.set_default_timeout(20_000)

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(part in message.text for part in allowed):
            complaints.append(f"{message.type}: {message.text}")

    def see(request: Any) -> None:
        if not request.url.startswith((url.split("/", 3)[0] + "//" + url.split("/")[2], "data:")):
            complaints.append(f"asked elsewhere: {request.url}")

    page.on("console", hear)
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("request", see)
    try:
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert not complaints, complaints


async def shoot(page: Page, name: str) -> None:
    """Keep a picture of a page."""
    SHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
