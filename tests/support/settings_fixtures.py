"""For tests of the settings: a Redis behind a password, config files, and the command line in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from typer.testing import CliRunner

from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_server import cli
from support.embedder_fixtures import RedisServer
from support.ports import free_port

CANARY = "canary-hunter2"


@dataclass(frozen=True, slots=True)
class Guarded:
    """A Redis whose password is the canary."""

    socket: str
    port: int

    @property
    def url(self) -> str:
        return f"redis://:{CANARY}@127.0.0.1:{self.port}/0"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[Guarded]:
    server = RedisServer(tmp_path_factory.mktemp("guarded"))
    server.start()
    port = free_port()
    with redis.Redis(unix_socket_path=str(server.path)) as client:
        client.config_set("port", port)
        client.config_set("requirepass", CANARY)
    yield Guarded(str(server.path), port)
    server.kill()


@pytest.fixture
async def client(guarded: Guarded) -> AsyncGenerator[Client]:
    async with connect(guarded.url) as connected:
        yield connected


def written(folder: Path, content: object) -> Path:
    """Write a config file."""
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(*command: str) -> tuple[int, str]:
    """Run a command in this process; return its exit code and its output."""
    result = CliRunner().invoke(cli.app, command)
    return result.exit_code, result.output + repr(result.exception)
