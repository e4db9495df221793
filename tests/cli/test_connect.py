"""`redis-memory connect` writes each client's documented entry and changes nothing else in its file."""

from __future__ import annotations

import json
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from typer.testing import CliRunner, Result

from memory_core.errors import InvalidArgument
from memory_server.cli import app
from memory_server.cli.client_config.clients import SECTION, Client, Environment, Server, config_file, entry
from memory_server.cli.client_config.json_text import with_member
from memory_server.local.paths import locate
from memory_server.local.servers import announced

URL = "http://127.0.0.1:8765/mcp?agent={}&answers=text"
FILES = {
    "claude": ".claude.json",
    "gemini": ".gemini/settings.json",
    "vscode": ".config/Code/User/mcp.json",
    "cursor": ".cursor/mcp.json",
    "codex": ".codex/config.toml",
}
HTTP: dict[str, dict[str, Any]] = {
    "claude": {"type": "http", "url": URL.format("claude")},
    "gemini": {"httpUrl": URL.format("gemini")},
    "vscode": {"type": "http", "url": URL.format("vscode")},
    "cursor": {"url": URL.format("cursor")},
    "codex": {"url": URL.format("codex")},
}
TOKENS: dict[str, dict[str, Any]] = {
    "claude": {"headers": {"Authorization": "Bearer ${MEMORY_TOKEN}"}},
    "gemini": {"headers": {"Authorization": "Bearer $MEMORY_TOKEN"}},
    "vscode": {"headers": {"Authorization": "Bearer ${env:MEMORY_TOKEN}"}},
    "cursor": {"headers": {"Authorization": "Bearer ${env:MEMORY_TOKEN}"}},
    "codex": {"bearer_token_env_var": "MEMORY_TOKEN"},
}
THEIRS = {
    "json": '{\n\t"a": "b",  "n": [1.50, 1e3],\n\t"SECTION": {\n\t\t"other": {"command": "näh"}\n\t},\n\t"z": 1 }',
    "toml": '# mine\nmodel = "o3"   # kept\n\n[mcp_servers.other]\ncommand = "näh"\n\n[tui]\ntheme = "dark"\n',
}


class Desk:
    """A home folder in which commands run."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        monkeypatch.setenv("HOME", str(home))
        for name in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "GEMINI_CLI_HOME", "XDG_CONFIG_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(home)

    def run(self, client: str, *words: str) -> Result:
        """Run `redis-memory connect`."""
        return CliRunner().invoke(app, ["connect", client, *words], catch_exceptions=True)

    def file(self, client: str) -> Path:
        """Return the client's configuration file."""
        return self.home / FILES[client]

    def entry(self, client: str, file: Path | None = None) -> dict[str, Any]:
        """Return this memory's entry in the file."""
        text = (file or self.file(client)).read_text()
        content = tomllib.loads(text) if client == "codex" else json.loads(text)
        return content[SECTION[Client(client)]]["redis-memory"]

    def write(self, client: str) -> str:
        """Write a configuration file with other settings."""
        text = THEIRS["toml" if client == "codex" else "json"].replace("SECTION", SECTION[Client(client)])
        self.file(client).parent.mkdir(parents=True, exist_ok=True)
        self.file(client).write_text(text)
        return text

    def backups(self, client: str) -> list[str]:
        """Return the names of the backups."""
        return sorted(path.name for path in self.file(client).parent.glob(f"{self.file(client).name}.*"))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """An empty home folder."""
    return Desk(tmp_path, monkeypatch)


@pytest.mark.parametrize("client", FILES)
def test_connect_creates_a_missing_file(desk: Desk, client: str) -> None:
    assert desk.run(client).exit_code == 0
    assert desk.entry(client) == HTTP[client]
    assert stat.S_IMODE(desk.file(client).stat().st_mode) == 0o600
    assert desk.backups(client) == []


@pytest.mark.parametrize("client", FILES)
def test_connect_keeps_other_settings_and_makes_a_backup(desk: Desk, client: str) -> None:
    before = desk.write(client)
    desk.file(client).chmod(0o640)
    assert desk.run(client).exit_code == 0
    after = desk.file(client).read_text()
    assert desk.entry(client) == HTTP[client]
    kept = [line for line in after.splitlines() if line in before.splitlines()]
    missing = [line for line in before.splitlines() if line not in kept]
    assert missing in ([], ['\t\t"other": {"command": "näh"}'])  # it gets a comma
    (backup,) = desk.backups(client)
    assert desk.file(client).with_name(backup).read_text() == before
    assert stat.S_IMODE(desk.file(client).stat().st_mode) == 0o600
    assert stat.S_IMODE(desk.file(client).with_name(backup).stat().st_mode) == 0o600


@pytest.mark.parametrize("client", FILES)
def test_connect_twice_changes_nothing(desk: Desk, client: str) -> None:
    desk.write(client)
    desk.run(client)
    before, backups = desk.file(client).stat(), desk.backups(client)
    assert "is already configured" in desk.run(client).stdout
    assert (desk.file(client).stat().st_mtime_ns, desk.backups(client)) == (before.st_mtime_ns, backups)


@pytest.mark.parametrize("client", FILES)
def test_dry_run_and_print_show_the_entry_and_change_nothing(desk: Desk, client: str) -> None:
    before = desk.write(client)
    shown = desk.run(client, "--dry-run").stdout
    assert "+" in shown
    assert URL.format(client) in shown
    result = json.loads(desk.run(client, "--dry-run", "--json").stdout)
    assert (result["entry"], result["would_change"], result["changed"]) == (HTTP[client], True, False)
    printed = desk.run(client, "--print").stdout
    assert desk.file(client).read_text() == before
    assert desk.backups(client) == []
    aside = desk.home / "aside"
    aside.write_text(printed)
    assert desk.entry(client, aside) == HTTP[client]


@pytest.mark.parametrize("client", FILES)
def test_connect_keeps_unknown_settings_of_its_entry(desk: Desk, client: str) -> None:
    desk.run(client, "--stdio")
    was = desk.entry(client)
    assert Path(was["command"]).is_absolute()
    assert was["args"][-6:] == ["serve", "--stdio", "--agent", client, "--answers", "text"]
    text = desk.file(client).read_text()
    in_toml, in_json = text + "\nstartup_timeout_sec = 60\n", text.replace('"command"', '"timeout": 60, "command"')
    extra = in_toml if client == "codex" else in_json
    desk.file(client).write_text(extra)
    desk.run(client)
    found = desk.entry(client)
    assert {key: value for key, value in found.items() if value != 60} == HTTP[client]
    assert 60 in found.values()


def test_chosen_tools_are_written_for_both_transports(desk: Desk) -> None:
    desk.run("claude", "--tools", "memory")
    assert desk.entry("claude")["url"] == f"{URL.format('claude')}&tools=memory"
    desk.run("claude", "--stdio", "--tools", "memory")
    assert desk.entry("claude")["args"][-4:] == ["--answers", "text", "--tools", "memory"]


@pytest.mark.parametrize("client", FILES)
def test_token_variable_is_written_but_never_the_token(
    desk: Desk, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMORY_TOKEN", "rm_secret")
    desk.run(client, "--token-env", "MEMORY_TOKEN")
    url = {key: value.replace(f"agent={client}&", "") for key, value in HTTP[client].items()}
    assert desk.entry(client) == url | TOKENS[client]
    desk.run(client, "--stdio", "--token-env", "MEMORY_TOKEN")
    assert "--agent" not in desk.entry(client)["args"]
    assert "rm_secret" not in desk.file(client).read_text()


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("claude", '{"mcpServers": {}'),
        ("claude", "[]"),
        ("gemini", '{"mcpServers": []}'),
        ("vscode", '{\n  // a comment\n  "servers": {}\n}'),
        ("cursor", '{"mcpServers": {"redis-memory": 1}}'),
        ("codex", "[mcp_servers"),
        ("codex", "mcp_servers = 1"),
    ],
)
def test_unparsable_file_is_refused_and_unchanged(desk: Desk, client: str, text: str) -> None:
    desk.write(client)
    desk.file(client).write_text(text)
    refused = desk.run(client).exception
    assert isinstance(refused, InvalidArgument)
    assert "--print" in refused.hint
    assert (desk.file(client).read_text(), desk.backups(client)) == (text, [])


def test_file_that_is_not_utf8_is_refused_and_unchanged(desk: Desk) -> None:
    desk.file("claude").write_bytes(b'{"a": "\xff"}')
    assert isinstance(desk.run("claude").exception, InvalidArgument)
    assert desk.file("claude").read_bytes() == b'{"a": "\xff"}'


@pytest.mark.parametrize("client", FILES)
def test_symbolic_link_is_followed_and_kept(desk: Desk, client: str) -> None:
    before = desk.write(client)
    target = desk.home / "dotfiles"
    desk.file(client).rename(target)
    desk.file(client).symlink_to(target)
    desk.run(client)
    assert desk.file(client).is_symlink()
    assert target.read_text() != before


@pytest.mark.parametrize("client", FILES)
def test_project_file_is_in_the_project_folder(desk: Desk, client: str) -> None:
    project = desk.home / "project"
    project.mkdir()
    expected = {**FILES, "claude": ".mcp.json", "vscode": ".vscode/mcp.json"}[client]
    assert config_file(Client(client), Environment(folder=project), project=True) == project / expected


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {}, ".config/Code/User/mcp.json"),
        ("linux", {"XDG_CONFIG_HOME": "/xdg"}, "/xdg/Code/User/mcp.json"),
        ("darwin", {}, "Library/Application Support/Code/User/mcp.json"),
        ("win32", {}, "AppData/Roaming/Code/User/mcp.json"),
        ("win32", {"APPDATA": "/roaming"}, "/roaming/Code/User/mcp.json"),
    ],
)
def test_vs_code_file_is_found_on_each_platform(platform: str, environment: dict[str, str], expected: str) -> None:
    place = Environment(home=Path("/home"), platform=platform, variables=environment)
    assert config_file(Client.VSCODE, place) == Path("/home") / expected


@pytest.mark.parametrize(
    ("variable", "client", "expected"),
    [
        ("CLAUDE_CONFIG_DIR", Client.CLAUDE, "/x/.claude.json"),
        ("GEMINI_CLI_HOME", Client.GEMINI, "/x/.gemini/settings.json"),
        ("CODEX_HOME", Client.CODEX, "/x/config.toml"),
    ],
)
def test_client_home_variables_are_respected(variable: str, client: Client, expected: str) -> None:
    assert config_file(client, Environment(variables={variable: "/x"})) == Path(expected)


@pytest.mark.parametrize(
    "words",
    [
        ("--name", "a b"),
        ("--token-env", "rm_abc-secret"),
        ("--stdio", "--url", "http://x/mcp"),
        ("--url", "ftp://x"),
    ],
)
def test_ambiguous_options_are_refused(desk: Desk, words: tuple[str, ...]) -> None:
    assert isinstance(desk.run("claude", *words).exception, InvalidArgument)
    assert not desk.file("claude").exists()


def test_codex_stdio_server_accepts_only_the_standard_token_variable() -> None:
    with pytest.raises(InvalidArgument, match="own names"):
        entry(Client.CODEX, Server(command=("redis-memory",), token_variable="MINE"))


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(), inner, max_size=3),
    max_leaves=8,
)
WRITERS: list[Callable[[Any], str]] = [
    json.dumps,
    lambda value: json.dumps(value, indent=2),
    lambda value: json.dumps(value, indent="\t", ensure_ascii=False).replace("\n", "\r\n"),
    lambda value: json.dumps(value, separators=(",", ":")),
]


@settings(max_examples=60, deadline=None)
@given(
    some.dictionaries(some.text(), JSON, max_size=4),
    some.dictionaries(some.text(), JSON, max_size=3) | some.none(),
    some.sampled_from(WRITERS),
)
def test_setting_a_json_member_keeps_the_rest(
    document: dict[str, Any], servers: dict[str, Any] | None, write: Callable[[Any], str]
) -> None:
    before = document | ({} if servers is None else {"servers": servers})
    if servers is None:
        before.pop("servers", None)
    after = json.loads(with_member(write(before), "servers", "mine", {"url": "x"}))
    assert after == {**before, "servers": {**(servers or {}), "mine": {"url": "x"}}}


@pytest.mark.parametrize("how", [("--http",), ("--stdio",)])
@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("--agent", "에이전트"), {}),
        (("--agent", "server"), {}),
        (("--agent", "a/b"), {}),
        (("--agent", "x" * 65), {}),
        (("--agent", "Claude Code", "--token-env", "MEMORY_TOKEN"), {}),
        (("--namespace", "팀"), {}),
        (("--namespace", "My Team", "--token-env", "MEMORY_TOKEN"), {}),
        ((), {"MEMORY_NAMESPACE": "팀"}),
    ],
)
def test_names_that_the_server_refuses_are_refused_before_writing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], environment: dict[str, str], how: tuple[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for client in FILES:
        for also in ((), ("--print",), ("--dry-run",)):
            result = desk.run(client, *how, *words, *also)
            assert isinstance(result.exception, InvalidArgument), result.output
            assert result.output == ""
        assert not desk.file(client).exists()


@pytest.mark.parametrize(("option", "query"), [("--agent", "agent"), ("--namespace", "namespace")])
@pytest.mark.parametrize("how", [(), ("--stdio",)])
def test_names_are_written_as_the_server_reads_them(desk: Desk, option: str, query: str, how: tuple[str, ...]) -> None:
    result = desk.run("claude", *how, option, "BIG Two")
    assert f'{query} "BIG Two" is big-two' in result.output
    written = desk.entry("claude")
    assert "big-two" in written["args"] if how else f"{query}=big-two" in written["url"]


def test_names_in_a_given_url_count_and_are_checked(desk: Desk) -> None:
    base = "https://memory.example/mcp?team=1&agent={}&answers=both"
    result = desk.run("claude", "--url", base.format("My%20Bot"))
    assert 'agent "My Bot" is my-bot' in result.output
    assert desk.entry("claude")["url"] == "https://memory.example/mcp?team=1&agent=my-bot&answers=both"
    desk.run("claude", "--url", base.format("bot"), "--agent", "other")
    assert desk.entry("claude")["url"] == "https://memory.example/mcp?team=1&agent=other&answers=both"
    for bad in ("agent=에이전트", "agent=server", "namespace=%ED%8C%80"):
        assert isinstance(desk.run("gemini", "--url", f"https://memory.example/mcp?{bad}").exception, InvalidArgument)
    assert not desk.file("gemini").exists()


def test_connect_says_on_which_data_directory_no_server_runs(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    mine, other = desk.home / "마이 data", desk.home / "other"
    other.mkdir(mode=0o700)
    (other / "password").write_text("secret\n")
    result = desk.run("claude", "--data-dir", str(mine))
    assert f"no server is running on the data directory {mine}" in result.output
    assert f"redis-memory serve --data-dir '{mine}'" in result.output
    assert str(other) not in result.output
    with announced(locate(other), "http://127.0.0.1:9", ""):
        assert f"servers run on {other}" in desk.run("claude", "--data-dir", str(mine)).output
        missing = desk.run("claude", "--data-dir", str(other)).output
    assert "the server at http://127.0.0.1:9 runs, but does not answer" in missing
    assert "no server is running" not in missing
