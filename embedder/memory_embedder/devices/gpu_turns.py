"""Gives each sidecar of a machine its own GPU.

A sidecar locks a file of its GPU while it runs. The kernel releases the lock when the process ends, however it ends.
In containers the folder is a volume that all sidecars share.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import MutableMapping
from pathlib import Path

from memory_core.crypto.secret_files import make_folder, open_private
from memory_core.errors import InvalidArgument, NotSupported
from memory_embedder.devices.nvml import nvidia_gpus
from memory_embedder.devices.rocm import amd_gpus

_CUDA, _HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Makes CUDA count GPUs like the driver. By default CUDA counts the fastest first."""
_held: list[int] = []
"""Locked descriptors, open until the process ends."""


def count_gpus() -> int:
    """Number of GPUs of this machine."""
    return len(nvidia_gpus()) or len(amd_gpus())


def take_turn(folder: Path, gpus: int, environ: MutableMapping[str, str] = os.environ) -> int:
    """Lock the first free GPU, make it the only one visible to the engines, and return its number.

    Raises:
        NotSupported: all GPUs are locked, or there are none.
        InvalidArgument: the folder cannot be used.
    """
    for number in range(gpus):
        if _lock(folder / f"gpu-{number}.lock"):
            environ.update({_CUDA: str(number), _HIP: str(number), **_ORDER})
            return number
    raise NotSupported(
        f"all {gpus} GPUs of this machine have a sidecar" if gpus else "found no GPU",
        hint="start at most one sidecar per GPU" if gpus else "check the driver, or omit --gpu-turns",
    )


def _lock(path: Path) -> bool:
    """Lock a file until this process ends. False if another process holds the lock."""
    try:
        make_folder(path.parent)
        descriptor = open_private(path)
    except OSError as error:
        raise InvalidArgument(f"cannot use the folder of --gpu-turns: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
