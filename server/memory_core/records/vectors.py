"""Checks and encodes vectors. One stored NaN would rank first in every search and hide true neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memory_core.errors import InvalidArgument
from memory_core.records.model import Model

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
    """Encode as float32, as in messages and exports."""
    return vector.astype("<f4", copy=False).tobytes()


def from_bytes(data: bytes, dimension: int) -> Matrix:
    """Decode float32 vectors to shape (n, dimension)."""
    return np.frombuffer(data, dtype="<f4").reshape(-1, dimension)


def to_stored(vector: Matrix, model: Model) -> bytes:
    """Encode in the format of a model's field and index."""
    return vector.astype("<f2" if model.half else "<f4").tobytes()


def to_float32(data: bytes, dimension: int) -> bytes:
    """Decode one stored vector to float32 bytes. The length tells the format; other lengths stay unchanged."""
    if len(data) != 2 * dimension:
        return data
    return np.frombuffer(data, dtype="<f2").astype("<f4").tobytes()


def from_stored(data: bytes, dimension: int) -> Matrix:
    """Decode one stored vector of either format to shape (dimension,). Raises ValueError for another length."""
    return from_bytes(to_float32(data, dimension), dimension).reshape(dimension)
