"""Lets the sidecars of one machine take a GPU each, so that starting one more takes the next one.

Each holds a lock on a file of its GPU for as long as it lives: the kernel lets go of it however the process ends. In
containers the folder is a volume that all of them share.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import MutableMapping
from pathlib import Path

from memory_core.errors import InvalidArgument, NotSupported
from memory_embedder.devices.nvml import gpu_names
from memory_embedder.devices.rocm import amd_gpus

_CUDA, _HIP = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"
_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Else CUDA counts the fastest first, and the driver does not."""
_held: list[int] = []
"""Descriptors that must not be closed."""


def count_gpus() -> int:
    """GPUs that this process could use."""
    return len(gpu_names()) or len(amd_gpus())


def take_turn(folder: Path, gpus: int, environ: MutableMapping[str, str] = os.environ) -> int:
    """Take the first GPU of so many that no other sidecar has, and show the engines that one alone; give its number.

    Raises:
        NotSupported: all are taken, or there are none.
        InvalidArgument: the folder cannot be used.
    """
    for number in range(gpus):
        if _take(folder / f"gpu-{number}.lock"):
            environ.update({_CUDA: str(number), _HIP: str(number), **_ORDER})
            return number
    raise NotSupported(
        f"all {gpus} GPUs of this machine have a sidecar" if gpus else "no GPU is to be seen",
        hint="start no more sidecars than there are GPUs" if gpus else "look at the driver, or leave --gpu-turns out",
    )


def _take(path: Path) -> bool:
    """Lock a file until this process ends; False if another has."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InvalidArgument(f"cannot use the folder of --gpu-turns: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _held.append(descriptor)
    return True
