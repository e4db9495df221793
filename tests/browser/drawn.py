"""Waits until a page is drawn."""

from __future__ import annotations

from playwright.async_api import Page, expect


async def drawn(page: Page, view: str) -> None:
    """Wait until a view shows what was loaded."""
    signs = {
        "overview": ".chart canvas", "memories": ".hit", "map": "[data-drawn]", "team": ".lane .task",
        "sharing": ".grant", "audit": "tbody tr",
    }  # fmt: skip
    await expect(page.locator(signs[view]).first).to_be_visible()
    await expect(page.get_by_text("Loading…")).to_have_count(0)
