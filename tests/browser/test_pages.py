"""Every view in a real browser: no console errors, accessible, and safe whatever memories contain."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from axe_playwright_python.async_playwright import Axe
from fill import XSS, Team
from pages import DESKTOP, PHONE, opened, shoot, wait_for_view
from playwright.async_api import Browser, Page, Route, expect
from support.stack import Server

from memory_server.access.operator_login import admit_once

pytestmark = pytest.mark.browser
VIEWS = ("overview", "memories", "map", "team", "sharing", "audit")
LOOKS = {"light": (DESKTOP, False), "dark": (DESKTOP, True), "phone": (PHONE, False), "phone-dark": (PHONE, True)}


_OVERVIEW_LOADED = "performance.getEntriesByName(new URL('static/views/overview.js', location)).length"
_CLICK_AT_ONCE = """new MutationObserver((_, observer) => {
  const link = document.querySelector('nav a[href="#/team"]');
  if (link) { observer.disconnect(); link.click(); }
}).observe(document, { childList: true, subtree: true });"""


async def accessibility_violations(page: Page) -> list[Any]:
    """Serious accessibility violations found by axe-core, which the test injects into the page."""
    found = await Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]})
    return [
        (one["id"], [node["html"][:120] for node in one["nodes"]])
        for one in found.response["violations"]
        if one["impact"] in {"serious", "critical"}
    ]


async def operator_address(server: Server, namespace: str) -> str:
    """A one-time address for the operator."""
    key = await admit_once(server.service.backend, namespace)
    return f"{server.url}/?namespace={namespace}#operator={key}"


@pytest.mark.parametrize("look", LOOKS)
async def test_every_view_has_no_console_errors_and_is_accessible(
    browser: Browser, server: Server, namespace: str, team: Team, look: str
) -> None:
    size, dark = LOOKS[look]
    first = await operator_address(server, namespace)
    async with opened(browser, first, size=size, dark=dark) as page:
        await expect(page.get_by_text("operator", exact=True)).to_be_visible()
        for view in VIEWS:
            await page.goto(f"{server.url}/?namespace={namespace}#/{view}")
            await wait_for_view(page, view)
            assert await accessibility_violations(page) == [], view
            width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert width <= 0, f"{view} is {width} px too wide"
            await shoot(page, f"{view}-{look}")


async def test_content_of_agents_is_shown_and_never_executed(
    browser: Browser, server: Server, namespace: str, team: Team
) -> None:
    first = await operator_address(server, namespace)
    async with opened(browser, first) as page:
        await expect(page.get_by_text("operator", exact=True)).to_be_visible()
        asked: list[str] = []
        page.on("dialog", lambda dialog: asked.append(dialog.message))
        for view in VIEWS:
            await page.goto(f"{server.url}/?namespace={namespace}#/{view}")
            await wait_for_view(page, view)
        await page.goto(f"{server.url}/?agent=claude&namespace={namespace}#/memories")
        for text in XSS[:-1]:
            await expect(page.get_by_text(text, exact=True).first).to_be_visible()
        await expect(page.get_by_text("#<b>tag</b>").first).to_be_visible()
        for text in XSS[:4]:
            await page.get_by_text(text, exact=True).first.click()
            dialog = page.get_by_role("dialog")
            await expect(dialog.locator(".whole")).to_have_text(text)
            await dialog.get_by_role("button", name="Edit").click()
            await expect(dialog.get_by_label("Content")).to_have_value(text)
            await page.keyboard.press("Escape")
        assert await page.evaluate("window.pwned") is None
        assert await page.locator("#app script, #app iframe, #app [onerror], #app [onload]").count() == 0
        assert not asked


async def test_injected_script_is_not_executed(browser: Browser, address: str) -> None:
    refused = ("Content Security Policy", "Content-Security-Policy")
    async with opened(browser, address, allowed=refused) as page:
        await expect(page.get_by_role("navigation")).to_be_visible()
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"window.pwned=1\">');"
            "const s = document.createElement('script'); s.textContent = 'window.pwned = 1'; document.body.append(s)"
        )
        await asyncio.sleep(0)
        assert await page.evaluate("window.pwned") is None


async def test_memories_are_usable_by_keyboard(browser: Browser, address: str, team: Team) -> None:
    async with opened(browser, f"{address}#/memories") as page:
        await wait_for_view(page, "memories")
        await page.keyboard.press("Tab")
        await expect(page.get_by_text("Skip to content")).to_be_focused()
        await page.keyboard.press("Enter")
        await expect(page.locator("#main")).to_be_focused()
        first = page.locator("button.content").first
        await first.focus()
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(first).to_be_focused()


async def test_theme_choice_persists(browser: Browser, address: str) -> None:
    async with opened(browser, address) as page:
        button = page.get_by_role("button", name="Theme: auto")
        await button.click()
        await page.get_by_role("button", name="Theme: light").click()
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")
        await page.reload()
        await expect(page.locator("html")).to_have_attribute("data-theme", "dark")


async def test_a_view_that_loads_late_does_not_replace_the_next_one(browser: Browser, address: str, team: Team) -> None:
    held = asyncio.Event()

    async def hold(route: Route) -> None:
        await held.wait()
        await route.continue_()

    async with opened(browser, f"{address}#/memories") as page:
        await wait_for_view(page, "memories")
        await page.route("**/views/overview.js", hold)
        await page.get_by_role("link", name="Overview").click()
        await page.get_by_role("link", name="Agents").click()
        await wait_for_view(page, "team")
        held.set()
        while not await page.evaluate(_OVERVIEW_LOADED):  # the page's policy forbids wait_for_function
            await asyncio.sleep(0.05)
        await page.wait_for_timeout(200)
        await expect(page.locator(".lane.leased")).to_be_visible()


async def test_link_clicked_at_the_first_instant_opens_its_view(browser: Browser, address: str, team: Team) -> None:
    async with opened(browser, f"{address}#/overview") as page:
        await page.add_init_script(_CLICK_AT_ONCE)
        await page.reload()
        await wait_for_view(page, "team")
