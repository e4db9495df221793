"""Files that the product writes: only its user can read them, and nothing in their place is followed."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

from memory_core.crypto import secret_files
from memory_core.crypto.secret_files import create_private, narrow, open_private, private_folder, write_private
from memory_core.errors import UnsafeStart
from memory_server.local.paths import prepare
from memory_server.transfer.files import Writer

ROOT = Path(__file__).parents[2]
HELPER = Path(secret_files.__file__)
ALWAYS_WRITE = {
    *("write_text", "write_bytes", "mkdir", "makedirs", "mkfifo", "symlink_to", "hardlink_to", "copyfile"),
    *("copy2", "copytree", "copymode", "mkstemp", "mkdtemp", "mktemp", "NamedTemporaryFile", "TemporaryDirectory"),
    *("TemporaryFile", "FileHandler", "RotatingFileHandler", "write_index", "save_model", "fdopen"),
}
READ_ONLY_FDOPEN = {("mcp/stdio_lines.py", "fdopen")}
"""Reads the descriptor of standard input."""


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def opens_for_writing(call: ast.Call) -> bool:
    """Whether a call creates a file or opens one for writing, as far as its text shows."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ALWAYS_WRITE or (name == "touch" and not call.args):  # not Service.touch(namespace, ids)
        return True
    if name not in ("open", "ZipFile"):
        return False
    values = [*call.args, *(keyword.value for keyword in call.keywords)]
    text = " ".join(ast.unparse(value) for value in values)
    modes = [one.value for one in values if isinstance(one, ast.Constant) and isinstance(one.value, str)]
    is_mode = any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes if mode)
    return is_mode or any(flag in text for flag in ("O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"))


def test_only_one_module_opens_files_for_writing() -> None:
    found: set[tuple[str, str]] = set()
    for file in [*ROOT.glob("server/**/*.py"), *ROOT.glob("embedder/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and opens_for_writing(node) and file != HELPER:
                found.add(("/".join(file.parts[-2:]), ast.unparse(node.func).rpartition(".")[2] or ast.unparse(node)))
    allowed = {
        ("commands/audit.py", "open"),  # a compressor around a file that is open already
        *READ_ONLY_FDOPEN,
    }
    assert found == allowed


@pytest.mark.parametrize(
    "source", ["open(p, 'w')", "p.open('ab')", "p.open(mode='x')", "os.open(p, os.O_CREAT)", "p.write_text('')"]
)
def test_search_for_writers_finds_each_way_to_write(source: str) -> None:
    (call,) = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)][:1]
    assert opens_for_writing(call)


def test_files_and_folders_are_private_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "a")
        write_private(tmp_path / "a" / "text", "x")
        os.close(open_private(tmp_path / "a" / "log"))
    finally:
        os.umask(before)
    assert [mode_of(tmp_path / name) for name in ("a", "a/text", "a/log")] == [0o700, 0o600, 0o600]


def test_wider_permissions_are_narrowed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    old = [data / name for name in ("password", "redis.log", "redis.log.1", "appendonlydir/base.aof")]
    mine = data / "notes.txt"
    for path in [*old, mine]:
        path.touch()
        path.chmod(0o644)
    data.chmod(0o755)
    prepare(data)
    assert mode_of(data) == mode_of(data / "appendonlydir") == 0o700
    assert {mode_of(path) for path in old} == {0o600}
    assert mode_of(mine) == 0o644, "only files of this product are changed"


def test_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / "link").symlink_to(victim)
    os.link(victim, tmp_path / "second")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "second", "fifo"):
        with pytest.raises(UnsafeStart):
            open_private(tmp_path / name)
    with pytest.raises(UnsafeStart):
        write_private(tmp_path / "link", "x")
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "link")
    with pytest.raises(UnsafeStart):
        narrow([tmp_path / "link"])
    assert victim.read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link", "second", "victim"], "no draft is left"


def test_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").touch()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UnsafeStart, match="belongs to another user"):
        open_private(tmp_path / "theirs")
    with pytest.raises(UnsafeStart, match="belongs to another user"):
        prepare(tmp_path)


def test_export_does_not_follow_a_prepared_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    part = tmp_path / "export.jsonl.default.part"
    part.symlink_to(victim)
    with pytest.raises(UnsafeStart):
        Writer(part, packed=False)
    part.unlink()
    with Writer(part, packed=False) as writer:
        writer.write(b"{}\n")
        writer.finish()
    assert mode_of(part) == 0o600
    assert victim.read_text() == "kept"
