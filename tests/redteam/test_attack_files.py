"""An attacker prepares files, folders, archives and ports where the memory reads, writes or connects."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port
from support.redis_users import SERVER
from support.stack import Server, Stack, in_own_task
from support.transfer_helpers import Shell

from memory_core.crypto.keyring import Keyring
from memory_core.crypto.secret_files import write_private
from memory_core.errors import InvalidArgument
from memory_server.local import locks
from memory_server.local.paths import Address, choose_socket, password_of, prepare, write_record
from memory_server.security.audit.export import check_file
from memory_server.transfer.detection import detect
from memory_server.transfer.foreign import Bad, Foreign

pytestmark = pytest.mark.redteam

STRANGER = 65534
_MIB = 1 << 20
_BOMB_MIB, _MOST_MIB = 600, 300
_EXCHANGE = 2  # of renameat2
LISTEN = """
import socket, sys
with socket.create_server(("127.0.0.1", int(sys.argv[1]))) as server:
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(1)
            try:
                sys.stdout.buffer.write(b"received " + connection.recv(4096))
            except OSError:
                continue
            sys.stdout.flush()
"""
READ = """
import resource, sys
from pathlib import Path
from memory_core.errors import InvalidArgument
from memory_server.transfer.detection import detect
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    source, known = detect(Path(sys.argv[1]), sys.argv[2])
    list(known.read(source))
except InvalidArgument:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@contextmanager
def listening_stranger(port: int, log: Path) -> Generator[None]:
    """Another user's program on a loopback port, which writes what it receives to `log`."""
    user: dict[str, Any] = {"user": STRANGER, "group": STRANGER, "extra_groups": []} if os.geteuid() == 0 else {}
    command: list[Any] = ["/usr/bin/env", "python3", "-c", LISTEN, str(port)]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, cwd="/", **user) as process:
        try:
            while b"listening" not in log.read_bytes():
                assert process.poll() is None
                time.sleep(0.02)
            yield
        finally:
            process.kill()


def memory_used_to_read(path: Path, format_name: str) -> int:
    """Return the MiB that it takes to find out that a file is refused."""
    command = [sys.executable, "-c", READ, str(path), format_name]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)


def lying_archive(path: Path, compression: int) -> Path:
    """Make a small archive of a long entry, of which the directory says that it has ten bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive, archive.open("conversations.json", "w") as entry:
        for _ in range(_BOMB_MIB):
            entry.write(b" " * _MIB)
    data = bytearray(path.read_bytes())
    declared = data.rfind(b"PK\1\2") + 24
    data[declared : declared + 4] = struct.pack("<I", 10)
    path.write_bytes(data)
    assert len(data) < 2 * _MIB
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archive_with_wrong_sizes_is_not_unpacked_beyond_them(tmp_path: Path, compression: int) -> None:
    assert memory_used_to_read(lying_archive(tmp_path / "a.zip", compression), "claude") < _MOST_MIB


def test_folder_of_many_long_conversations_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        with (tmp_path / f"conversations-{number}.json").open("wb") as file:
            file.truncate(200 * _MIB)  # takes no space on the disk
    assert memory_used_to_read(tmp_path, "claude") < _MOST_MIB


def test_link_to_conversations_elsewhere_is_not_imported(tmp_path: Path) -> None:
    private = [{"uuid": "1", "chat_messages": [{"uuid": "2", "sender": "human", "text": "the vault opens with 9133"}]}]
    handed_over = tmp_path / "handed-over"
    handed_over.mkdir()
    (tmp_path / "private.json").write_text(json.dumps(private))
    (handed_over / "conversations.json").symlink_to(tmp_path / "private.json")
    source, known = detect(handed_over, "claude")
    assert known is not None
    assert not [found for found in known.read(source) if isinstance(found, Foreign)]


def test_folder_that_is_exchanged_for_a_link_leads_nowhere(tmp_path: Path) -> None:
    drop, home = tmp_path / "drop", tmp_path / "home"
    for folder, content in ((home, "the vault opens with 9133"), (drop, "harmless"), (drop / "a", "harmless")):
        folder.mkdir()
        (folder / "a.md").write_text(content)
    (drop / ".folder").symlink_to(home)
    (drop / ".file.md").symlink_to(home / "a.md")
    exchange, ended = ctypes.CDLL(None, use_errno=True).renameat2, threading.Event()

    def attack() -> None:
        while not ended.is_set():
            for link, place in ((".folder", "a"), (".file.md", "a.md")):
                exchange(-100, bytes(drop / link), -100, bytes(drop / place), _EXCHANGE)

    source, known = detect(drop, "folder")
    assert known is not None
    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            for found in known.read(source):
                assert not isinstance(found, Foreign) or found.content == "harmless", found.where
    finally:
        ended.set()
        attacker.join()


def test_folders_inside_each_other_without_end_are_a_bad_record(tmp_path: Path) -> None:
    nest = "for _ in range(1200): os.mkdir('a'); os.chdir('a')\nopen('b.md', 'w').write('deep')"
    subprocess.run([sys.executable, "-c", f"import os\n{nest}"], cwd=tmp_path, check=True)
    source, known = detect(tmp_path, "folder")
    assert known is not None
    try:
        assert [type(one) for one in known.read(source)] == [Bad]
    finally:
        subprocess.run(["rm", "-rf", "a"], cwd=tmp_path, check=True)  # too deep for what removes `tmp_path`


@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e999", "-1e999", "NaN"])
def test_time_beyond_all_numbers_is_a_bad_record(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'{{"results": [{{"id": "1", "memory": "a", "created_at": {value}}}]}}')
    source, known = detect(path, "mem0")
    assert known is not None
    assert [type(one) for one in known.read(source)] == [Bad]


def test_password_is_not_sent_to_the_port_of_an_ended_redis(tmp_path: Path) -> None:
    """Redis was killed while its child still writes: the child has the lock, and its port is free for any user."""
    paths, port, log = prepare(tmp_path / "data"), free_port(), tmp_path / "received"
    password = password_of(paths)
    write_record(paths.address, Address(str(choose_socket(paths)), port))
    write_private(paths.supervisor_lock, "")
    held = locks.take_exclusive(paths.redis_lock)
    assert held is not None
    command = [sys.executable, "-m", "memory_server", "stop", "--data-dir", str(paths.data_dir)]
    try:
        with listening_stranger(port, log), subprocess.Popen(command) as stopping:
            until = time.monotonic() + 20
            while not paths.stopped.exists() and time.monotonic() < until:
                time.sleep(0.02)
            assert paths.stopped.exists(), "it asks the orphan to stop"
            time.sleep(1)
            stopping.terminate()
    finally:
        os.close(held)
    assert b"received" not in log.read_bytes()
    assert password.encode() not in log.read_bytes()


ON_OWN_TMP = """
mount -t tmpfs own /tmp && ln -s /var /tmp/redis-memory-0 && unset XDG_RUNTIME_DIR TMPDIR
exec "$0" -c '
from pathlib import Path
from memory_server.local.paths import Address, LocalPaths, choose_socket
paths = LocalPaths(Path("/data"))
chosen = choose_socket(paths)
print(chosen, choose_socket(paths, Address(str(chosen), 1)), oct(chosen.parent.stat().st_mode & 0o777))'
"""


def test_socket_folder_that_another_user_took_does_not_stop_the_memory() -> None:
    command = ["unshare", "-rm", "sh", "-c", ON_OWN_TMP, sys.executable]
    chosen, again, mode = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert chosen == again
    assert Path(chosen).parent.name.startswith("redis-memory-0-")
    assert mode == "0o700"


def served(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command, by default a server, on a data directory that must be refused."""
    command = [sys.executable, "-m", "memory_server", *(words or ("serve", "--port", "0")), "--data-dir", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_copied_data_directory_does_not_close_a_folder_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    paths, public = prepare(tmp_path / "data"), tmp_path / "public"
    public.mkdir(mode=0o755)
    crafted = Address(str(public / paths.socket_name), 1)
    assert choose_socket(paths, crafted).parent != public
    assert public.stat().st_mode & 0o777 == 0o755


def test_folder_of_other_things_does_not_become_a_data_directory(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "passwd").touch()
    refused = served(shared)
    assert (refused.returncode, "holds other files than a memory" in refused.stderr) == (78, True)
    assert shared.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["password", "integrity.key", "address.json", "state.json"])
def test_pipe_in_a_data_directory_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    os.mkfifo(tmp_path / "data" / name, 0o600)
    refused = served(tmp_path / "data")
    assert (refused.returncode, "is not a plain file" in refused.stderr) == (78, True)


@pytest.mark.parametrize("words", [("status",), ("doctor",), ("stop",), ("search", "a beacon")], ids=" ".join)
@pytest.mark.parametrize("name", ["password", "integrity.key", "state.json"])
def test_pipe_in_a_data_directory_stops_no_other_command(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "appendonlydir").mkdir(mode=0o700)
    os.mkfifo(data / name, 0o600)
    ended = served(data, *words)
    assert "Traceback" not in ended.stderr
    assert (ended.returncode == 0) == (words == ("stop",)), (ended.stdout, ended.stderr)


def connect_in(project: Path, *words: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run `redis-memory connect --project` in a folder that an attacker made."""
    command = [sys.executable, "-P", "-m", "memory_server", "connect", *words]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("client", ["claude", "vscode"])
def test_connect_changes_no_file_outside_the_project(tmp_path: Path, client: str, exists: bool) -> None:
    project, home = tmp_path / "project", tmp_path / "home"
    project.mkdir()
    home.mkdir()
    victim = home / ("mcp.json" if client == "vscode" else "settings.json")
    if exists:
        victim.write_text('{"kept": 1}')
    if client == "vscode":
        (project / ".vscode").symlink_to(home)
    else:
        (project / ".mcp.json").symlink_to(victim)
    refused = connect_in(project, client, "--project")
    assert (refused.returncode, "is a link out of this project" in refused.stderr) == (78, True)
    assert [path.name for path in home.iterdir()] == ([victim.name] if exists else [])
    assert not exists or victim.read_text() == '{"kept": 1}'


def test_connect_reads_no_endless_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".mcp.json")
    assert connect_in(tmp_path, "claude", "--project").returncode == 78


def test_server_that_a_client_starts_ignores_modules_of_its_folder(tmp_path: Path) -> None:
    """The script is elsewhere, as after `pip install --user`; the client starts the server in a hostile project."""
    shadow = tmp_path / "memory_server"
    shadow.mkdir()
    (shadow / "__init__.py").touch()
    (shadow / "__main__.py").write_text("print('the code of the project runs')")
    (tmp_path / "redis.py").write_text("print('the code of the project runs')")
    interpreter = tmp_path / "python"
    interpreter.symlink_to(sys.executable)
    command = [str(interpreter), "-P", "-m", "memory_server", "connect", "claude", "--stdio", "--project", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    entry = json.loads(subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout)
    started = [entry["entry"]["command"], *entry["entry"]["args"][:-4], "--help"]
    done = subprocess.run(started, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "the code of the project runs" not in done.stdout
    assert "Serve MCP" in done.stdout


CLIENT_FILES = {
    "codex": [
        "[mcp_servers.redis-memory.env]\na=1\n[b]\n[mcp_servers.redis-memory]\nurl='x'",
        "[mcp_servers]\nurl=[1]\nurl.x=2",
    ],
    "claude": ['{"mcpServers": {"redis-memory": {"a": "\\ud800"}}}', "[" * 100_000],
}


@pytest.mark.parametrize(("client", "text"), [(name, text) for name, texts in CLIENT_FILES.items() for text in texts])
def test_malformed_client_file_is_refused_in_one_line(tmp_path: Path, client: str, text: str) -> None:
    file = tmp_path / (".codex/config.toml" if client == "codex" else ".mcp.json")
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    refused = connect_in(tmp_path, client, "--project")
    assert (refused.returncode, refused.stderr.count("\n")) == (78, 1)
    assert file.read_text() == text


@pytest.mark.parametrize("count", ["[1]", "1e999", '"x"', "null"])
def test_audit_export_with_malformed_counts_is_refused(tmp_path: Path, count: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"audit": 1, "namespace": "a", "given": {count}, "sealed": 0}}\n')
    with pytest.raises(InvalidArgument, match="is not an audit export"):
        check_file(file, Keyring())


@pytest.mark.parametrize(
    ("variable", "value"), [("MEMORY_AUTH", "[" * 50_000), ("REDIS_URL", "redis://:s3cret@h/0?max_connections=-1")]
)
def test_malformed_variable_is_refused_in_one_line(tmp_path: Path, variable: str, value: str) -> None:
    command = [sys.executable, "-m", "memory_server", "status"]
    environment = {**os.environ, variable: value}
    refused = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (refused.returncode, refused.stderr.count("\n")) == (78, 1)
    assert "s3cret" not in refused.stderr


@pytest.mark.parametrize("line", ["[]", '{"a": 1}', "x", '{"kind": []}', '{"kind": "memory", "id": 1}', "[" * 100_000])
async def test_damaged_unfinished_export_is_refused(
    server: Server, stack: Stack, namespace: str, tmp_path: Path, line: str
) -> None:
    shell = Shell(stack.redis.url_of(SERVER))
    async with in_own_task(server.agent("ann", namespace)) as ann:
        await ann.store("The tide table.")
    await shell.done("export", tmp_path / "a.jsonl", "--namespace", namespace)
    header = (tmp_path / "a.jsonl").read_text().splitlines()[0]
    write_private(tmp_path / f"b.jsonl.{namespace}.part", f"{header}\n{line}\n")
    refused = await shell.run("export", tmp_path / "b.jsonl", "--namespace", namespace)
    assert (refused.code, refused.output) == (78, "conflict: the unfinished export is damaged")
