"""Hides the difference between NumPy and CuPy, so that the numerics are the same code on a CPU and on a GPU."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator
from typing import Any

import numpy as np

from memory_core.records.vectors import Matrix

Array = Any
"""numpy.ndarray or cupy.ndarray, which have the same methods."""
_MIN_ROWS = 1024


class ArrayModule:
    """CuPy if the sidecar uses a GPU that CuPy supports, else NumPy. `fallback` says why not CuPy."""

    def __init__(self, device: str = "cpu") -> None:
        self.module: Any = np
        self.name, self.fallback = "numpy", ""
        if device.startswith("cuda"):
            try:
                self.module = _cupy(device)
                self.name = "cupy"
            except Exception as error:  # a missing or broken CUDA raises various errors
                self.fallback = f"the bulk engine computes on the CPU: {type(error).__name__}: {str(error)[:80]}"

    def to_host(self, array: Array) -> Any:
        """Copy to a NumPy array."""
        return array if self.module is np else self.module.asnumpy(array)

    def to_device(self, array: Any) -> Array:
        """Copy to an array of the module."""
        return self.module.asarray(array)


def _cupy(device: str) -> Any:
    cupy = importlib.import_module("cupy")
    _, _, number = device.partition(":")
    cupy.cuda.Device(int(number or 0)).use()
    cupy.zeros(1).sum().item()
    return cupy


class DeviceRows:
    """A copy of a mirror's rows on the device. Each row is sent once. On the CPU it is the rows themselves."""

    def __init__(self, arrays: ArrayModule) -> None:
        self._arrays = arrays
        self._rows: list[Array] = []
        self._sent = 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(int(rows.nbytes) for rows in self._rows)

    def sync(self, host: Matrix) -> Array:
        """Send new rows and return all rows on the device. `host` only grows at its end.

        Raises:
            MemoryError: the device has no memory left.
        """
        if self._arrays.module is np:
            return host
        with self._memory_errors():
            rows = self._with_room(host)
            if len(host) > self._sent:
                rows[self._sent : len(host)] = self._arrays.to_device(host[self._sent :])
                self._sent = len(host)
        self._rows = [rows]
        return rows[: len(host)]

    def _with_room(self, host: Matrix) -> Array:
        if self._rows and len(host) <= len(self._rows[0]):
            return self._rows[0]
        rows = self._arrays.module.empty((max(len(host) * 5 // 4, _MIN_ROWS), host.shape[1]), dtype=np.float32)
        if self._sent:
            rows[: self._sent] = self._rows[0][: self._sent]
        return rows

    @contextlib.contextmanager
    def _memory_errors(self) -> Generator[None]:
        try:
            yield
        except self._arrays.module.cuda.memory.OutOfMemoryError as error:
            raise MemoryError("the mirror does not fit into GPU memory") from error
