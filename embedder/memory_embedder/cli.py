"""The command `redis-memory-embedder`: flags in, one running sidecar, an exit code out."""

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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory_core import logs, tracing
from memory_core.connection import redis_url
from memory_core.errors import InvalidArgument, MemoryServiceError, ModelMismatch, NotSupported, UnsafeStart
from memory_core.keyring import load_keyring
from memory_core.sealing import Transports
from memory_core.settings import Settings
from memory_embedder.devices.gpu_turns import count_gpus, take_turn
from memory_embedder.engines.backends import Backend, load_encoder
from memory_embedder.engines.encoder_options import EncoderOptions, Hint

if TYPE_CHECKING:
    from memory_embedder.engines.encoder import Encoder
    from memory_embedder.sidecar import Sidecar, SidecarOptions

_log = logging.getLogger(__name__)
EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: starting again without changing something is of no use."""
EXIT_FAILURE = 1
PARENT_VARIABLE = "REDIS_MEMORY_PARENT"
"""Names the starting process, which may have ended before this one could ask who its parent is."""
_PARENT_CHECK_SECONDS = 1.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def serve(
    redis: Annotated[str | None, typer.Option("--redis-url", envvar="REDIS_URL", help="Where Redis is.")] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, or path of its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps, xpu, cuda[:N] or rocm[:N].")] = None,
    backend: Annotated[Backend, typer.Option(help="The inference engine; auto takes the fastest here.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Cores of one inference; all by default.")] = None,
    hint: Annotated[Hint, typer.Option(help="What OpenVINO divides the cores for.")] = "throughput",
    engine_cache: Annotated[Path | None, typer.Option(help="Folder for TensorRT's engines; not used without.")] = None,
    lease: Annotated[float, typer.Option(min=0.1, help="Seconds after which others take a job over.")] = 10.0,
    exit_with_parent: Annotated[bool, typer.Option(help="Stop when the starting process ends.")] = False,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of /metrics; none by default.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address of /metrics, open to all who reach it.")] = "127.0.0.1",
    gpu_turns: Annotated[
        Path | None, typer.Option(help="Folder by which sidecars of one machine take a GPU each.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file of settings.")] = None,
) -> None:
    """Embed what the memory servers store and ask, until stopped by SIGTERM or Ctrl-C."""
    parent = int(os.environ.get(PARENT_VARIABLE) or os.getppid()) if exit_with_parent else None
    settings = Settings.load(config, redis_url=redis, gpu={"preferred_device": device} if device else None)
    logs.configure(settings.log_level, settings.log_format)
    url = redis_url(settings)
    if url is None:
        raise InvalidArgument("no Redis is named", hint="set REDIS_URL or give --redis-url")
    if gpu_turns is not None:
        take_turn(gpu_turns, count_gpus())
    name = model or settings.vector_store.embedding_model
    encoder = load_encoder(backend, EncoderOptions(name, settings.gpu, threads, hint, engine_cache))
    from memory_embedder.sidecar import SidecarOptions

    tracing.start(settings, "redis-memory-embedder", version("redis-memory-gpu"))
    place = None if metrics_port is None else (metrics_host, metrics_port)
    options = SidecarOptions(lease=lease, bulk_bytes=settings.bulk.memory_bytes, standby=model is not None)
    _run(_serve(url, encoder, options, parent, Transports(load_keyring(settings).transports), place))


def main() -> None:
    """Run the command; a typed error becomes one line on stderr and an exit code."""
    try:
        app()
    except MemoryServiceError as error:
        hint = f" ({error.hint})" if error.hint else ""
        print(f"redis-memory-embedder: {error.code}: {error.message}{hint}", file=sys.stderr)
        sys.exit(exit_code(error))


def exit_code(error: MemoryServiceError) -> int:
    """78 where only a change of configuration helps, 1 otherwise."""
    is_configuration = isinstance(error, InvalidArgument | ModelMismatch | NotSupported | UnsafeStart)
    return EXIT_CONFIGURATION if is_configuration or error.code == "weights_altered" else EXIT_FAILURE


async def _serve(
    url: str,
    encoder: Encoder,
    options: SidecarOptions,
    parent: int | None,
    transports: Transports,
    metrics: tuple[str, int] | None,
) -> None:
    from memory_embedder.sidecar import Sidecar

    sidecar = Sidecar(url, encoder, options, transports)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, sidecar.stop)
    watcher = asyncio.create_task(_watch_parent(parent, sidecar.stop)) if parent else None
    try:
        with _telling(sidecar, metrics):
            await sidecar.run()
    finally:
        if watcher:
            watcher.cancel()
        await asyncio.to_thread(tracing.stop)


@contextlib.contextmanager
def _telling(sidecar: Sidecar, place: tuple[str, int] | None) -> Generator[None]:
    """Serve metrics at a place, if one is named."""
    if place is None:
        yield
        return
    from memory_embedder.metrics import serving_metrics

    with serving_metrics(sidecar, *place) as port:
        _log.info("metrics are at http://%s:%d/metrics", place[0], port)
        yield


async def _watch_parent(parent: int, stop: Callable[[], None]) -> None:
    """An orphan is adopted by another process; that is the only sign which also survives kill -9."""
    while os.getppid() == parent:
        await asyncio.sleep(_PARENT_CHECK_SECONDS)
    stop()


def _run(main_coroutine: Coroutine[Any, Any, None]) -> None:
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main_coroutine)
