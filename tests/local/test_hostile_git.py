"""A Git configuration that anybody wrote puts no credential into a namespace, and neither stops nor slows the start."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from test_project import configured

from memory_core.records.names import check_name
from memory_server.local import project
from memory_server.local.project import Project, find_project

WITH_CREDENTIALS = [
    "https://hunter2@github.com/acme/app.git",
    "https://ann:hunter2@github.com/acme/app.git",
    "https://ann:hunter2@github.com:443/acme/app",
    "https://ann:a@hunter2@github.com/acme/app",
    "https://github.com/ann:hunter2@acme/app",
    "https://github.com/acme/ann:hunter2@app",
    "https:/ann:hunter2@github.com/acme/app",
    "https:////ann:hunter2@github.com/acme/app",
    "https://ann:hunter2@github.com:port/acme/app",
    "https://[ann:hunter2@github.com/acme/app",
    "https://ann%3Ahunter2%40github.com/acme/app",
    "https://github.com/ann%3Ahunter2%40acme/app",
    "https://github.com/ann%253Ahunter2%2540acme/app",
    "https://github.com/acme/app?token=hunter2",
    "https://github.com/acme/app#hunter2",
    "https://github.com/acme/app%3Ftoken=hunter2",
    "https://github.com/acme/app%23hunter2",
    "https://github.com/acme/app%253Ftoken=hunter2",
    "ann:hunter2@github.com:acme/app",
    "git@github.com:ann:hunter2@acme/app",
    "git@github.com:acme/app?token=hunter2",
    "github.com:acme/app#hunter2",
    "hunter2@github.com/acme/app",
    "ssh://ann:hunter2@[::1]:22/acme/app",
    "ssh://ann:hunter2@/acme/app",
    "file://ann:hunter2@host/acme/app?token=hunter2",
    "ext::sh -c hunter2@acme/app",
    "://ann:hunter2@github.com/acme/app",
]
ODD = [
    "https://github.com/acme/\\u001b[31mapp",
    "https://github.com/acme/\\napp\\tred",
    "https://github.com/acme/\x00\x1b[2J\x7f\u202eapp",
    "git@github.com:acme/\x1b]0;title\x07app",
    "https://\x00/\x01",
    "~nobody-of-this-name/app",
    "~\x00/app",
    "\x00",
    "@",
    ":",
    "://",
    "https://",
    "[::",
    "/" * 4000,
    "https://xn--a/\udcff",
]
OVERSIZED = ["https://github.com/" + "a" * 5000, "@" * 100_000, "a:" * 100_000 + "@", "https://" + "[" * 100_000]


def found_with(folder: Path, url: str) -> Project:
    """Return the project of a repository with this remote."""
    root = configured(folder / "shed", "")
    text = f'[remote "origin"]\n\turl = "{url}"\n'
    (root / ".git" / "config").write_bytes(text.encode("utf-8", "surrogateescape"))
    return find_project(root)


@pytest.mark.parametrize("url", WITH_CREDENTIALS)
def test_no_credential_of_a_remote_is_in_a_namespace_or_its_source(tmp_path: Path, url: str) -> None:
    found = found_with(tmp_path, url)
    assert "hunter2" not in f"{found.namespace} {found.source}".lower()
    assert check_name(found.namespace) == found.namespace


@pytest.mark.parametrize("url", ODD)
def test_odd_remote_gives_a_name_and_a_source_that_can_be_shown(tmp_path: Path, url: str) -> None:
    found = found_with(tmp_path, url)
    assert check_name(found.namespace) == found.namespace
    assert found.source.isprintable()


@pytest.mark.parametrize("url", OVERSIZED)
def test_oversized_remote_is_left_out_at_once(tmp_path: Path, url: str) -> None:
    began = time.perf_counter()
    found = found_with(tmp_path, url)
    assert time.perf_counter() - began < 2
    assert found.source == f"the Git repository {tmp_path / 'shed'}"


@pytest.mark.parametrize(
    "config",
    [
        "[include]\n\tpath = config\n" * 1000,
        '[includeIf "gitdir:/"]\n\tpath = ../.git/config\n[include]\n\tpath = /dev/zero\n',
        '[remote "' + "\\" * 500_000,
        '[remote "' + "a" * 900_000 + '"]\n\turl = ""\n',
        "[" * 900_000,
        '[remote "origin"]\n\turl = "' + '\\"' * 400_000,
        '[remote "origin"]\n' + "url\n" * 200_000,
        "\\\n" * 400_000,
        '[remote "origin"]\n\turl = https://a/' + "b" * 2_000_000,
    ],
)
def test_configuration_with_loops_or_of_great_length_is_read_at_once(tmp_path: Path, config: str) -> None:
    began = time.perf_counter()
    found = find_project(configured(tmp_path / "shed", config))
    assert time.perf_counter() - began < 3
    assert found.namespace.startswith("shed-")


def test_configuration_that_cannot_be_read_counts_as_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = configured(tmp_path / "shed", "")
    config = root / ".git" / "config"
    plain = find_project(root)
    unreadable = (
        config.mkdir,
        lambda: os.mkfifo(config),
        lambda: config.symlink_to("config"),
        lambda: config.symlink_to("/dev/zero"),
        lambda: config.write_bytes(b"\xff\xfe\x00" * 1000),
    )
    for make in unreadable:
        config.rmdir() if config.is_dir() else config.unlink()
        make()
        assert find_project(root) == plain

    def refuse(_: Path) -> str:
        raise PermissionError

    monkeypatch.setattr(project, "_text", refuse)
    assert find_project(root) == plain


@pytest.mark.parametrize("target", ["/etc", "/proc/self", "../" * 200, "shed", "\x00", "~root", "a" * 5000, "//", "."])
def test_git_file_that_points_elsewhere_names_no_namespace(tmp_path: Path, target: str) -> None:
    root = tmp_path / "shed"
    root.mkdir()
    plain = find_project(root)
    (root / ".git").write_text(f"gitdir: {target}\n")
    assert find_project(root) == plain


@pytest.mark.parametrize("target", ["/dev/zero", "../" * 200, "\x00", "a" * 5000, ".", "/etc"])
def test_common_folder_that_points_elsewhere_gives_a_name_all_the_same(tmp_path: Path, target: str) -> None:
    root = configured(tmp_path / "shed", '[remote "origin"]\n\turl = https://ann:hunter2@github.com/acme/app\n')
    (root / ".git" / "commondir").write_text(target)
    found = find_project(root)
    assert check_name(found.namespace) == found.namespace
    assert "hunter2" not in f"{found.namespace} {found.source}"
