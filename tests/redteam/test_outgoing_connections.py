"""Nothing phones home: a product at work connects to no other machine and leaves no file in the home directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.product import SERVE, serving, stop_redis

STRACE = shutil.which("strace")
pytestmark = [pytest.mark.redteam, pytest.mark.skipif(STRACE is None, reason="strace is not installed")]

_ENGINES = """
import memory_embedder
from memory_core.settings.settings import GpuSettings
from memory_embedder.engines.catalogue import open_engine
from memory_embedder.engines.encoder_options import EncoderOptions
for engine in ("onnx", "openvino"):
    encoder = open_engine(engine, EncoderOptions("all-MiniLM-L6-v2"))
    assert encoder.infer(encoder.tokenise(["a text"])).shape == (1, 384)
"""
_COMMAND = "from memory_server.cli.root import main; main()"
_OPTIONS = ("-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg")
_INTERNET = re.compile(r'sa_family=AF_INET6?\b.*?(?:inet_addr\("|inet_pton\(AF_INET6, ")([^"]+)"')


def outgoing(trace: Path) -> set[str]:
    """The addresses beyond this machine that traced processes connected or sent to."""
    found = set(_INTERNET.findall(trace.read_text(errors="replace")))
    return {address for address in found if not address.startswith(("127.", "::1", "::ffff:127."))}


def foreign_files(home: Path) -> list[Path]:
    """Files in the home directory that are not in this product's cache."""
    own = home / ".cache" / "redis-memory-gpu"
    return [path for path in home.rglob("*") if path.is_file() and own not in path.parents]


def traced(home: Path, code: str, *arguments: str, **environment: str) -> Path:
    """Run Python code with all its children under strace, in an empty home directory."""
    trace = home.parent / f"{home.name}.strace"
    assert STRACE
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    command: list[str | Path] = [STRACE, *_OPTIONS, "-o", trace]
    subprocess.run(
        [*command, sys.executable, "-c", code, *arguments],
        env={**kept, "HOME": str(home), **environment},
        check=True,
        timeout=240,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    return trace


def test_engines_look_up_no_host_and_leave_no_file(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert outgoing(traced(home, _ENGINES)) == set()
    assert foreign_files(home) == []


def test_the_trace_sees_a_lookup(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"
    assert outgoing(traced(home, code)) == {"192.0.2.1"}


def test_store_and_search_of_a_new_store_call_no_host(tmp_path: Path) -> None:
    home, data, notes = tmp_path / "home", tmp_path / "data", tmp_path / "notes"
    home.mkdir()
    notes.mkdir()
    (notes / "deploy.md").write_text("The deploy runs on Fridays.")
    agent = ("--agent", "claude")
    server_trace = tmp_path / "server.strace"
    assert STRACE
    server = (STRACE, "-D", *_OPTIONS, "-o", str(server_trace), "env", f"HOME={home}", *SERVE)
    try:
        assert outgoing(traced(home, _COMMAND, "import", str(notes), *agent, "--data-dir", str(data))) == set()
        with (tmp_path / "server.log").open("w+b") as log, serving(server, data, log):
            asked = traced(home, _COMMAND, "search", "When is the deploy?", *agent, "--data-dir", str(data))
        assert (outgoing(asked), outgoing(server_trace)) == (set(), set())
    finally:
        stop_redis(data)
    assert foreign_files(home) == []
