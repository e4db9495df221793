"""`connect --project` and `serve --stdio --project` give each project a namespace."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.stdio import stdio_agent
from typer.testing import CliRunner, Result

from memory_core.errors import InvalidArgument, echo
from memory_server import cli
from memory_server.local.project import find_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a remote, as the working directory, of a user without settings."""
    folder = tmp_path / "app"
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "config").write_text('[remote "origin"]\nurl = https://ann:SECRET@github.com/acme/app.git\n')
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MEMORY_NAMESPACE", raising=False)
    return folder


def connect(*words: str) -> Result:
    """Run `redis-memory connect claude`."""
    return CliRunner().invoke(cli.app, ["connect", "claude", *words])


def entry(folder: Path) -> dict[str, object]:
    """Return the entry in the project's file."""
    return json.loads((folder / ".mcp.json").read_text())["mcpServers"]["redis-memory"]


def test_connect_project_names_the_namespace_in_the_url(project: Path) -> None:
    result = connect("--project")
    namespace = find_project(project).namespace
    assert str(entry(project)["url"]).endswith(f"/mcp?agent=claude&namespace={namespace}&answers=text")
    assert f"Namespace {namespace}, from the Git remote github.com/acme/app" in result.stdout
    assert "SECRET" not in result.output + (project / ".mcp.json").read_text()


def test_connect_project_leaves_a_named_namespace(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect("--project", "--namespace", "team")
    assert str(entry(project)["url"]).endswith("/mcp?agent=claude&namespace=team&answers=text")
    monkeypatch.setenv("MEMORY_NAMESPACE", "default")
    connect("--project")
    assert str(entry(project)["url"]).endswith("/mcp?agent=claude&answers=text")


def test_connect_with_a_token_leaves_the_namespace_to_it(project: Path) -> None:
    connect("--project", "--token-env", "MEMORY_TOKEN")
    assert "namespace" not in str(entry(project)["url"])


def test_stdio_server_of_a_project_derives_its_namespace_at_start(project: Path) -> None:
    connect("--project", "--stdio")
    arguments = entry(project)["args"]
    assert isinstance(arguments, list)
    assert "--project" in arguments
    assert "--namespace" not in arguments


def test_one_configuration_of_the_user_can_serve_many_projects(project: Path) -> None:
    connect("--stdio", "--per-project")
    written = json.loads((project.parent / ".claude.json").read_text())["mcpServers"]["redis-memory"]
    assert "--project" in written["args"]
    assert isinstance(connect("--per-project").exception, InvalidArgument)


def test_without_project_the_default_namespace_stays(project: Path) -> None:
    connect("--stdio")
    written = json.loads((project.parent / ".claude.json").read_text())["mcpServers"]["redis-memory"]
    assert "--project" not in written["args"]


def test_project_over_http_is_refused(project: Path) -> None:
    result = CliRunner().invoke(cli.app, ["serve", "--project"])
    assert isinstance(result.exception, InvalidArgument)
    assert "?namespace=NAME" in result.exception.hint


def test_refusals_show_letters_of_any_language_and_no_controls() -> None:
    assert echo("하나 größe 名前") == "'하나 größe 名前'"
    assert echo("a\u202eb\x1b[31m\n\u3164") == "'a\\u202eb\\x1b[31m\\n\\u3164'"
    assert echo("가" * 70) == f"'{'가' * 64}'…"


@pytest.mark.long
async def test_stdio_servers_of_two_projects_share_no_memories(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = project.parent / "data", project.parent / "other"
    other.mkdir()
    options = ("--project", "--data-dir", str(data))
    async with stdio_agent("ann", *options) as agent:
        await agent.store("The harbour opens at six.", visibility="public")
        assert await agent.search("harbour", mode="keyword") == ["The harbour opens at six."]
    monkeypatch.chdir(other)
    async with stdio_agent("ann", *options) as agent:
        assert await agent.search("harbour", mode="keyword") == []
    async with stdio_agent("ann", *options, "--namespace", find_project(project).namespace) as agent:
        assert await agent.search("harbour", mode="keyword") == ["The harbour opens at six."]
