"""The command `redis-memory-embedder`, which runs one sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from memory_core.crypto.keyring import load_keyring
from memory_core.crypto.pinned_files import FileAltered
from memory_core.crypto.sealing import Transports
from memory_core.crypto.secret_files import restrict_umask
from memory_core.errors import InvalidArgument, MemoryServiceError, ModelMismatch, NotSupported, UnsafeStart
from memory_core.observe import logs, tracing
from memory_core.settings.settings import Settings
from memory_core.store.connection import redis_url
from memory_embedder.devices.gpu_turns import count_gpus, take_turn
from memory_embedder.engines.backends import Backend, load_encoder
from memory_embedder.engines.encoder import Encoder
from memory_embedder.engines.encoder_options import EncoderOptions, Hint
from memory_embedder.sidecar import Sidecar, SidecarOptions

_log = logging.getLogger(__name__)
EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: a restart without a change will fail again."""
EXIT_FAILURE = 1
PARENT_VARIABLE = "REDIS_MEMORY_PARENT"
"""Holds the pid of the starting process, which may end before this process can read its parent's pid."""
_PARENT_CHECK_SECONDS = 1.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    redis: Annotated[str | None, typer.Option("--redis-url", envvar="REDIS_URL", help="URL of Redis.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, or path of its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, xpu, cuda[:N] or rocm[:N].")] = None,
    backend: Annotated[Backend, typer.Option(help="Inference engine; auto uses the fastest one.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Cores per inference; default: all.")] = None,
    hint: Annotated[Hint, typer.Option(help="How OpenVINO divides the cores.")] = "throughput",
    engine_cache: Annotated[
        Path | None, typer.Option(help="Folder for TensorRT engines; without it TensorRT is not used.")
    ] = None,
    lease: Annotated[float, typer.Option(min=0.1, help="Seconds after which another sidecar may claim a job.")] = 10.0,
    exit_with_parent: Annotated[bool, typer.Option(help="Stop when the parent process ends.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of /metrics; default: no metrics.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics, which has no authentication.")] = "127.0.0.1",
    gpu_turns: Annotated[
        Path | None, typer.Option(help="Folder of lock files that give each sidecar of a machine its own GPU.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file (JSON).")] = None,
) -> None:
    """Embed the texts of the memory servers until stopped by SIGTERM or Ctrl-C."""
    parent = int(os.environ.get(PARENT_VARIABLE) or os.getppid()) if exit_with_parent else None
    settings = Settings.load(config, redis_url=redis, gpu={"preferred_device": device} if device else None)
    logs.configure(settings.log_level, settings.log_format)
    url = redis_url(settings)
    if url is None:
        raise InvalidArgument("no Redis URL is configured", hint="set REDIS_URL or pass --redis-url")
    if gpu_turns is not None:
        take_turn(gpu_turns, count_gpus())  # before an engine sees the GPUs
    name = model or settings.vector_store.embedding_model
    encoder = load_encoder(backend, EncoderOptions(name, settings.gpu, threads, hint, engine_cache))
    tracing.start(settings, "redis-memory-embedder", version("redis-memory-gpu"))
    metrics = None if metrics_port is None else (metrics_host, metrics_port)
    options = SidecarOptions(lease=lease, bulk_bytes=settings.bulk.memory_bytes, standby=model is not None)
    _run(_serve(url, encoder, options, parent, Transports(load_keyring(settings).transports), metrics))


def main() -> None:
    """Run the command. A typed error becomes one line on stderr and an exit code."""
    restrict_umask()
    try:
        app()
    except MemoryServiceError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"redis-memory-embedder: {error.code}: {error.message}{hint}", file=sys.stderr)
        sys.exit(exit_code(error))


def exit_code(error: MemoryServiceError) -> int:
    """78 if only a change of configuration helps, else 1."""
    is_configuration = isinstance(error, FileAltered | InvalidArgument | ModelMismatch | NotSupported | UnsafeStart)
    return EXIT_CONFIGURATION if is_configuration else EXIT_FAILURE


async def _serve(
    url: str,
    encoder: Encoder,
    options: SidecarOptions,
    parent: int | None,
    transports: Transports,
    metrics: tuple[str, int] | None,
) -> None:
    sidecar = Sidecar(url, encoder, options, transports)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.stop)
    watcher = asyncio.create_task(_watch_parent(parent, sidecar.stop)) if parent else None
    try:
        with _metrics_server(sidecar, metrics):
            await sidecar.run()
    finally:
        if watcher:
            watcher.cancel()
        await asyncio.to_thread(tracing.stop)


@contextlib.contextmanager
def _metrics_server(sidecar: Sidecar, address: tuple[str, int] | None) -> Generator[None]:
    if address is None:
        yield
        return
    from memory_embedder.metrics import serving_metrics  # loads prometheus_client

    with serving_metrics(sidecar, *address) as port:
        _log.info("serving metrics at http://%s:%d/metrics", address[0], port)
        yield


async def _watch_parent(parent: int, stop: Callable[[], None]) -> None:
    """Stop when this process gets another parent: the only sign that also works after kill -9."""
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    stop()


def _run(main_coroutine: Coroutine[Any, Any, None]) -> None:
    factory = None
    with contextlib.suppress(ImportError):  # not installed on Windows
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main_coroutine)
