"""The documentation: its snippets run, and its generated references are current."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.redis_users import SERVER
from support.snippets import Page, blocks
from support.stack import MASTER_KEY, Stack

from memory_server.mcp import tools_reference

ROOT = Path(__file__).parents[2]
NOT_RUN = {
    "README.md": 1,
    "docs/architecture.md": 1,
    "docs/authentication.md": 1,
    "docs/concepts/sensitive.md": 1,
    "docs/cookbook/credentials.md": 1,
    "docs/cookbook/index.md": 1,
    "docs/cookbook/moving-in.md": 1,
    "docs/dashboard.md": 1,
    "docs/inside.md": 1,
    "docs/moving-data.md": 1,
    "docs/operations.md": 3,
    "docs/reliability.md": 2,
    "docs/running.md": 3,
}
"""The number of blocks that are marked as not run, by page."""
NEED_A_MEMORY = {"docs/concepts/sensitive.md", "docs/running.md"}
"""Pages whose commands need a namespace in which an agent stored something."""
GENERATED = {"docs/cli.md", "docs/settings.md", "docs/tools.md"}


def _pages() -> list[str]:
    found = [path for path in (ROOT / "docs").rglob("*.md") if "decisions" not in path.parts]
    names = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in found)]
    return [name for name in names if name not in GENERATED and blocks(ROOT / name)]


PAGES = _pages()


@pytest.mark.parametrize("name", PAGES)
async def test_snippets_of_a_page_give_the_documented_output(
    name: str, stack: Stack, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = {
        "REDIS_URL": stack.redis.url_of(SERVER),
        "MEMORY_MASTER_KEY": MASTER_KEY,
        "MEMORY_PORT": "0",
        "HOME": str(tmp_path),
    }
    page = Page(stack.server.url, environment, namespace)
    if name in NEED_A_MEMORY:
        environment["MEMORY_NAMESPACE"] = f"{namespace}-team"
        async with stack.server.agent("coder", f"{namespace}-team") as coder:
            await coder.store("The release is on Friday.")
    for block in blocks(ROOT / name):
        if not block.why_not:
            await page.run(block)


def test_number_of_skipped_snippets_is_known() -> None:
    marked = {name: sum(bool(block.why_not) for block in blocks(ROOT / name)) for name in PAGES}
    assert {name: count for name, count in marked.items() if count} == NOT_RUN


async def test_tools_page_is_current() -> None:
    written = (ROOT / "docs" / "tools.md").read_text()
    made = await asyncio.to_thread(tools_reference.markdown)
    assert written == made, "run `redis-memory reference --tools > docs/tools.md`"
