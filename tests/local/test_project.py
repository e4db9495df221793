"""The namespace of a project: from its Git remote, else from its folder."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from memory_core.errors import InvalidArgument
from memory_core.records.names import check_name
from memory_server.local.project import find_project

FORMS = [
    "https://github.com/acme/app.git",
    "https://github.com/acme/app",
    "https://github.com/Acme/App/",
    "https://github.com:443/acme/app.git",
    "https://ann:ghp_SECRET@github.com/acme/app.git",
    "https://ann:p@ss:SECRET@github.com/acme/app.git?token=SECRET#SECRET",
    "ssh://git@github.com/acme/app.git",
    "ssh://git@github.com:2222/acme/app.git",
    "git@github.com:acme/app.git",
    "git@github.com:/acme/app.git",
    "github.com:acme/app",
    "git://github.com/acme/app",
]
"""The forms of one remote's URL."""
OTHERS = [
    "https://github.com/bob/app.git",
    "https://gitlab.com/acme/app.git",
    "https://github.com/a/cme-app.git",
    "https://github.com:8443/acme/app.git",
    "https://github.com/acme/app2",
    "https://github.com/회사/앱.git",
    "https://github.com/회사/책.git",
    "https://github.com/" + "a" * 300 + "/app",
    "https://github.com/" + "a" * 301 + "/app",
]
"""The URLs of other repositories."""


def git(folder: Path, *words: str) -> None:
    """Run Git in a folder, without the user's settings."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    named = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *named, *words], cwd=folder, check=True, capture_output=True, env=environment, timeout=30)


def repository(folder: Path, url: str | None = None, remote: str = "origin") -> Path:
    """Make a repository with one commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    if url is not None:
        git(folder, "remote", "add", remote, url)
    return folder


def configured(folder: Path, config: str) -> Path:
    """Make a repository with a configuration of any text."""
    (folder / ".git").mkdir(parents=True)
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (folder / ".git" / "config").write_text(config)
    return folder


def namespace_of(folder: Path, url: str) -> str:
    """Return the namespace of a repository with this remote."""
    name = str(len(list(folder.iterdir())))
    return find_project(configured(folder / name, f'[remote "origin"]\n\turl = "{url}"\n')).namespace


def test_all_forms_of_a_remote_are_one_namespace_without_credentials(tmp_path: Path) -> None:
    found = {namespace_of(tmp_path, url) for url in FORMS}
    (name,) = found
    assert name.startswith("acme-app-")
    assert "secret" not in name


def test_forks_and_other_hosts_have_namespaces_of_their_own(tmp_path: Path) -> None:
    names = [namespace_of(tmp_path, url) for url in (FORMS[0], *OTHERS)]
    assert len(set(names)) == len(names)
    assert [check_name(name) for name in names] == names


@pytest.mark.parametrize("url", FORMS)
def test_source_of_a_namespace_shows_no_credentials(tmp_path: Path, url: str) -> None:
    found = find_project(configured(tmp_path / "a", f'[remote "origin"]\nurl = "{url}"\n'))
    assert found.source == "the Git remote github.com/acme/app"


@pytest.mark.parametrize(
    "config",
    [
        '[remote "origin"]\n\turl = https://github.com/acme/app.git ; comment\n',
        '[REMOTE "origin"] url = "https://github.com/acme/app.git"  # comment\n',
        '[remote "zed"]\nurl = https://x.example/z\n[remote "origin"]\r\n  url = https://github.com/acme/\\\r\napp\r\n',
        '[remote "origin"]\nurl=https://old.example/x\nurl = https://github.com/acme/app\n',
        '[remote "upstream"]\nurl = git@github.com:acme/app.git\n[branch "main"]\nurl = https://no.example/x\n',
    ],
)
def test_configuration_is_read_as_git_reads_it(tmp_path: Path, config: str) -> None:
    assert find_project(configured(tmp_path / "a", config)).source == "the Git remote github.com/acme/app"


def test_worktrees_subfolders_and_detached_heads_share_a_namespace(tmp_path: Path) -> None:
    root = repository(tmp_path / "my app", FORMS[0])
    git(root, "worktree", "add", "-q", "--detach", str(tmp_path / "other tree"))
    (root / "src" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(root)
    git(root, "checkout", "-q", "--detach")
    folders = [root, root / "src" / "deep", tmp_path / "other tree", tmp_path / "link"]
    assert len({find_project(folder).namespace for folder in folders}) == 1


def test_worktrees_of_a_repository_without_remote_share_a_namespace(tmp_path: Path) -> None:
    root = repository(tmp_path / "내 앱 app")
    git(root, "worktree", "add", "-q", str(tmp_path / "tree"))
    assert find_project(root) == find_project(tmp_path / "tree")
    assert find_project(root).namespace.startswith("app-")
    assert find_project(repository(tmp_path / "b" / "내 앱 app")).namespace != find_project(root).namespace


def test_submodule_is_a_project_of_its_own(tmp_path: Path) -> None:
    library = repository(tmp_path / "library")
    root = repository(tmp_path / "app", FORMS[0])
    git(root, "submodule", "add", "-q", str(library), "lib")
    assert find_project(root / "lib").namespace.startswith(("test-", "library-", f"{tmp_path.name[:4].lower()}"))
    assert find_project(root / "lib").namespace != find_project(root).namespace


def test_folder_without_git_is_named_by_its_path(tmp_path: Path) -> None:
    names = []
    for parent in ("a", "b"):
        folder = tmp_path / parent / ("책" * 80)
        folder.mkdir(parents=True)
        names.append(find_project(folder).namespace)
    assert len(set(names)) == 2
    assert all(name.startswith("project-") for name in names)


def test_home_and_root_are_no_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (tmp_path, Path("/")):
        with pytest.raises(InvalidArgument, match="is not a project"):
            find_project(folder)


def test_hostile_git_files_name_no_namespace(tmp_path: Path) -> None:
    own = find_project(tmp_path).namespace
    (tmp_path / ".git").write_text("gitdir: /dev/zero\n")
    assert find_project(tmp_path).namespace == own
    (tmp_path / ".git").write_bytes(b"gitdir: " + b"x" * (2 << 20))
    assert find_project(tmp_path).namespace == own
    (tmp_path / ".git").unlink()
    os.mkfifo(tmp_path / ".git")
    assert find_project(tmp_path).namespace == own


def test_repository_of_another_user_names_no_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = configured(tmp_path / "a", f'[remote "origin"]\nurl = {FORMS[0]}\n')
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(folder).st_uid + 1)
    assert find_project(folder).source == f"the folder {folder}"
