"""Checks and encodes vectors. One stored NaN would rank first in every search and hide true neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_core.errors import InvalidArgument

Matrix = NDArray[np.float32]
_EPSILON = 1e-6


def normalise(vectors: Matrix, dimension: int) -> Matrix:
    """Return rows of unit length, shape (n, dimension), float32. Raises InvalidArgument for NaN or a zero vector."""
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[1] != dimension:
        raise InvalidArgument(f"vectors of shape {matrix.shape} do not have {dimension} dimensions")
    if not np.isfinite(matrix).all():
        raise InvalidArgument("a vector holds NaN or infinity", hint="send finite numbers only")
    with np.errstate(over="ignore"):
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths < _EPSILON).any():
        raise InvalidArgument("a vector has no usable length", hint="a zero vector has no direction to search by")
    return matrix / lengths


def to_bytes(vector: Matrix) -> bytes:
    """Encode as the float32 little-endian bytes that Redis indexes."""
    return vector.astype("<f4", copy=False).tobytes()


def from_bytes(data: bytes, dimension: int) -> Matrix:
    """Decode stored vectors to shape (n, dimension)."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, dimension)


def to_half(vector: bytes) -> bytes:
    """Shorten float32 bytes to float16, for caches."""
    return np.frombuffer(vector, dtype="<f4").astype("<f2").tobytes()


def from_half(data: bytes, dimension: int) -> bytes:
    """Lengthen float16 bytes to those of a unit vector in float32. Raises InvalidArgument for another length."""
    if len(data) != 2 * dimension:
        raise InvalidArgument(f"{len(data)} bytes are no float16 vector of {dimension} dimensions")
    return to_bytes(normalise(np.frombuffer(data, dtype="<f2").astype(np.float32).reshape(1, dimension), dimension))
