"""What a user does on the dashboard, in a real browser on real data."""

from __future__ import annotations

import re

import pytest
from fill import Team
from pages import opened, shoot, wait_for_view
from playwright.async_api import Browser, Page, expect
from support import dashboard_fixtures
from support.auth_helpers import issued
from support.stack import Server

from memory_server.access.operator_login import admit_once

pytestmark = pytest.mark.browser
_FIRST_POINT = """async (element) => {
  const chart = (await import('/static/vendor/echarts.js')).getInstanceByDom(element);
  return chart.convertToPixel({ seriesIndex: 0 }, chart.getOption().series[0].data[0].slice(0, 2));
}"""
UNAUTHORISED = ("401 (Unauthorized)",)


guarded = dashboard_fixtures.guarded


async def search(page: Page, query: str) -> None:
    """Search on the memories page."""
    await page.get_by_role("searchbox").fill(query)
    await page.get_by_role("button", name="Search", exact=True).click()
    await expect(page.get_by_text(re.compile(r"^\d+ found"))).to_be_visible()


async def test_search_finds_by_meaning_and_explains_the_score(browser: Browser, address: str, team: Team) -> None:
    async with opened(browser, f"{address}#/memories") as page:
        await wait_for_view(page, "memories")
        await search(page, "who asked whether something could be rebooted")
        hit = page.locator(".hit").first
        await expect(hit).to_contain_text("may be restarted")
        await expect(hit.get_by_role("meter", name="Share of meaning")).to_be_visible()
        assert "cosine" in (await hit.locator(".score").get_attribute("title") or "")
        await shoot(page, "search")
        await page.get_by_text("Filters", exact=True).click()
        await page.get_by_label("code").check()
        await page.get_by_role("button", name="Search", exact=True).click()
        await expect(page.locator(".hit").first).to_contain_text("code")
        kinds = await page.locator(".hit [data-kind=type]").all_inner_texts()
        assert set(kinds) == {"code"}


async def test_memory_is_edited_shared_revoked_and_deleted(
    browser: Browser, server: Server, namespace: str, address: str, team: Team
) -> None:
    async with server.agent("vscode", namespace) as vscode, opened(browser, f"{address}#/memories") as page:
        async with server.agent("claude", namespace) as claude:
            await claude.store("The parser of billing is slow.")
        await search(page, "parser of billing")
        await page.get_by_role("button", name="The parser of billing is slow.").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_role("button", name="Edit").click()
        await dialog.get_by_label("Content").fill("The tokenizer of billing was replaced.")
        await dialog.get_by_label("Tags").fill("one, two")
        await dialog.get_by_role("button", name="Save").click()
        await expect(dialog.locator(".whole")).to_have_text("The tokenizer of billing was replaced.")
        await expect(dialog.get_by_text("#two")).to_be_visible()
        await shoot(page, "memory")
        await dialog.get_by_role("button", name="Share").click()
        await dialog.get_by_label("With agent").fill("vscode")
        await dialog.get_by_role("button", name="Share").click()
        await expect(page.get_by_text("Shared with vscode.")).to_be_visible()
        assert "was replaced" in str(await vscode.call("get_shared_context"))
        await page.keyboard.press("Escape")

        await page.get_by_role("link", name="Sharing").click()
        grant = page.locator(".grant", has_text="vscode")
        await grant.get_by_role("button", name="Revoke").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(grant).to_have_count(0)
        assert "was replaced" not in str(await vscode.call("get_shared_context"))

        await page.get_by_role("link", name="Memories").click()
        await search(page, "tokenizer of billing was replaced")
        await page.get_by_role("button", name="The tokenizer of billing was replaced.").click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Cancel", exact=True).click()
        await page.get_by_role("button", name="Delete", exact=True).click()
        await page.get_by_role("button", name="Delete permanently").click()
        await expect(page.get_by_text("Deleted.")).to_be_visible()
        await expect(page.get_by_text("The tokenizer of billing was replaced.")).to_have_count(0)


async def test_offers_are_accepted_and_declined(
    browser: Browser, server: Server, namespace: str, address: str, team: Team
) -> None:
    async with (
        server.agent("leaver", namespace) as leaver,
        server.agent("vscode", namespace) as vscode,
        server.agent("claude", namespace) as claude,
    ):
        await leaver.call("register_agent")
        left = await leaver.store("The keys are under the mat.")
        await leaver.call("unregister_agent", memories="transfer", transfer_to="claude")
        offered = await vscode.call(
            "share_context_with_agent", target_agent="claude", context="attic", bidirectional=True
        )
        async with opened(browser, f"{address}#/sharing") as page:
            await page.get_by_role("button", name="Accept the offer of leaver").click()
            await expect(page.get_by_text("Accepted the offer of leaver.")).to_be_visible()
            await page.get_by_role("button", name="Decline the offer of vscode").click()
            await expect(page.get_by_text("Declined the offer of vscode.")).to_be_visible()
            await expect(page.get_by_text("Pending offers")).to_have_count(0)
        assert (await claude.call("retrieve_memory", memory_id=left))["memory"]["trust"] == "received"
        shared = await claude.call("get_shared_context")
        assert offered["offer_id"] not in str(shared)


async def test_concurrent_change_is_not_overwritten(
    browser: Browser, server: Server, namespace: str, address: str, team: Team
) -> None:
    async with (
        server.agent("claude", namespace) as claude,
        opened(browser, f"{address}#/memories", allowed=("409 (Conflict)",)) as page,
    ):
        memory = await claude.store("The first version.")
        await page.get_by_role("button", name="The first version.").click()
        await page.get_by_role("button", name="Edit").click()
        await claude.call("update_memory", memory_id=memory, content="The second version.")
        await page.get_by_label("Content").fill("The third version.")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("dialog").get_by_role("alert")).to_be_visible()
        assert (await claude.call("retrieve_memory", memory_id=memory))["memory"]["content"] == "The second version."


async def test_changes_appear_live_unless_live_is_off(
    browser: Browser, server: Server, namespace: str, address: str, team: Team
) -> None:
    async with (
        server.agent("claude", namespace) as claude,
        opened(browser, f"{address}#/memories") as page,
        opened(browser, f"{address}&live=0#/memories") as still,
    ):
        for each in (page, still):
            await wait_for_view(each, "memories")
        await expect(page.get_by_text("live", exact=True)).to_be_visible()
        await claude.store("Stored while somebody looks on.")
        await expect(page.get_by_text("Stored while somebody looks on.")).to_be_visible()
        await expect(still.get_by_text("not live")).to_be_visible()
        assert await still.get_by_text("Stored while somebody looks on.").count() == 0
        await page.get_by_role("link", name="Overview").click()
        memory = await claude.store("One more.")
        await expect(page.locator(f".feed code[title='{memory}']").first).to_be_visible()


async def test_operator_sees_leases_count_down_and_no_control_that_changes_anything(
    browser: Browser, server: Server, namespace: str, team: Team
) -> None:
    key = await admit_once(server.service.backend, namespace)
    async with opened(browser, f"{server.url}/#operator={key}") as page:
        await expect(page.get_by_text("operator", exact=True)).to_be_visible()
        await page.get_by_role("link", name="Agents").click()
        ticking = page.locator(".lane.leased .ticking b")
        before = await ticking.inner_text()
        await expect(ticking).not_to_have_text(before)
        dead = page.locator(".lane.dead .task", has_text="Rotate the keys")
        await expect(dead).to_contain_text("no access to the vault")
        await expect(page.get_by_role("button", name="Retry")).to_have_count(0)
        await page.get_by_role("link", name="Sharing").click()
        await wait_for_view(page, "sharing")
        for control in ("Revoke", "Share"):
            await expect(page.get_by_role("button", name=control)).to_have_count(0)
        await page.get_by_role("link", name="Memories").click()
        await wait_for_view(page, "memories")
        await page.locator("button.content").first.click()
        await expect(page.get_by_role("dialog").locator(".whole")).to_be_visible()
        for control in ("Edit", "Share", "Delete"):
            await expect(page.get_by_role("dialog").get_by_role("button", name=control)).to_have_count(0)


async def test_admin_token_retries_a_dead_task(browser: Browser, guarded: Server, namespace: str, team: Team) -> None:
    token = await issued(guarded, "root", namespace, ["admin"])
    async with opened(browser, guarded.url + "/", allowed=UNAUTHORISED) as page:
        await page.get_by_label("Token").fill(token)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_text("admin", exact=True)).to_be_visible()
        await page.get_by_role("link", name="Agents").click()
        dead = page.locator(".lane.dead .task", has_text="Rotate the keys")
        await dead.get_by_role("button", name="Retry").click()
        await page.get_by_role("dialog").get_by_role("button", name="Retry").click()
        await expect(page.get_by_text("The task is pending again.")).to_be_visible()
        await expect(page.locator(".lane.waiting")).to_contain_text("Rotate the keys")
        await page.get_by_role("button", name="Rotate the keys").click()
        history = page.get_by_role("dialog").locator(".history")
        await expect(history).to_contain_text("requeued")


async def test_map_shows_snippets_and_selects_with_the_lasso(browser: Browser, address: str, team: Team) -> None:
    async with opened(browser, f"{address}#/map") as page:
        await wait_for_view(page, "map")
        canvas = page.locator("[data-drawn]")
        box = await canvas.bounding_box()
        assert box
        place = await canvas.evaluate(_FIRST_POINT)
        await page.mouse.move(box["x"] + place[0], box["y"] + place[1])
        await expect(page.locator(".snippet")).to_be_visible()
        lasso = page.get_by_role("button", name="Lasso")
        await lasso.click()
        await expect(lasso).to_have_attribute("aria-pressed", "true")
        corners = [(0.02, 0.1), (0.98, 0.1), (0.98, 0.98), (0.02, 0.98), (0.02, 0.1)]
        places = [(box["x"] + across * box["width"], box["y"] + down * box["height"]) for across, down in corners]
        await page.mouse.move(*places[0])
        await page.mouse.down()
        for place in places[1:]:
            await page.mouse.move(*place, steps=12)
        await page.mouse.up()
        await expect(page.get_by_text(re.compile(r"^\d+ selected$"))).to_be_visible()
        picked = page.locator(".picked button")
        await expect(picked.first).to_be_visible()
        await shoot(page, "map-lasso")
        await page.get_by_role("button", name="Show all").click()
        await expect(page.get_by_text(re.compile(r"^\d+ selected$"))).to_have_count(0)
        legend = page.get_by_role("button", name=re.compile("^claude"))
        await legend.click()
        await expect(legend).to_have_attribute("aria-pressed", "false")
        await canvas.focus()
        await page.keyboard.press("+")
        await page.keyboard.press("ArrowLeft")
        await page.get_by_role("button", name="List", exact=True).press("Enter")
        await expect(picked.first).to_be_visible()


async def test_audit_is_verified(browser: Browser, server: Server, namespace: str, team: Team) -> None:
    key = await admit_once(server.service.backend, namespace)
    async with opened(browser, f"{server.url}/#operator={key}") as page:
        await page.get_by_role("link", name="Audit").click()
        await wait_for_view(page, "audit")
        await page.get_by_role("button", name="Verify all entries").click()
        await expect(page.get_by_text("Intact", exact=True)).to_be_visible()
        await page.get_by_label("Operation").fill("fail_task")
        await page.get_by_role("button", name="Filter").click()
        await expect(page.locator("tbody tr")).to_have_count(2)
        await shoot(page, "audit-checked")


async def test_login_needs_a_valid_token_and_shows_its_agent(browser: Browser, guarded: Server, namespace: str) -> None:
    token = await issued(guarded, "alice", namespace)
    async with opened(browser, guarded.url + "/", allowed=UNAUTHORISED) as page:
        field = page.get_by_label("Token")
        await shoot(page, "login")
        await field.fill(token[:-1])
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_contain_text("not valid")
        await field.fill(token)
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_text(f"{namespace} / alice")).to_be_visible()
        assert token not in await page.content()
        stored = await page.evaluate("document.cookie + JSON.stringify({...localStorage, ...sessionStorage})")
        assert token not in stored
        assert "rm_" not in stored
        await page.get_by_role("button", name="Log out").click()
        await expect(page.get_by_label("Token")).to_be_visible()


async def test_one_time_address_opens_the_operator_view_once(browser: Browser, guarded: Server, namespace: str) -> None:
    address = f"{guarded.url}/#operator={await admit_once(guarded.service.backend, namespace)}"
    async with opened(browser, address, allowed=UNAUTHORISED) as page:
        await expect(page.get_by_text(f"{namespace} / operator")).to_be_visible()
        assert "operator=" not in page.url
    async with opened(browser, address, allowed=UNAUTHORISED) as page:
        await expect(page.get_by_role("alert")).to_contain_text("used already")
        await expect(page.get_by_label("Token")).to_be_visible()
