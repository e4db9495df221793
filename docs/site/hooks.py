"""Adds pages from outside docs/ to the site and rewrites links to them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
EXTERNAL_PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changes.md",
    "LICENSE": "LICENSE",
    "benchmarks/README.md": "measured.md",
    "examples/team.py": "examples/team.py",
    "schemas/export.json": "schemas/export.json",
}
"""Path in the repository → path in the site."""
_LINK = re.compile(r"(\]\()([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/."""
    for source, page in EXTERNAL_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite repository links of a page to their paths in the site."""
    there = {page: source for source, page in EXTERNAL_PAGES.items()}
    source = PurePosixPath(there.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    here = PurePosixPath(page.file.src_uri).parent

    def rewrite(match: re.Match[str]) -> str:
        if "://" in match[2]:
            return match[0]
        target = normpath(str(source.parent / match[2]))
        in_site = EXTERNAL_PAGES.get(target) or target.removeprefix("docs/")
        is_outside = in_site == target and target not in EXTERNAL_PAGES.values()
        return match[0] if is_outside else match[1] + relpath(in_site, str(here))

    return _LINK.sub(rewrite, markdown)
