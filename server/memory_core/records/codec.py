"""msgpack for Functions and stream messages."""

from __future__ import annotations

from typing import Any, cast

import msgpack

DecodeError = (ValueError, TypeError, msgpack.UnpackException)


def pack(value: object) -> bytes:
    """Pack for a Function: Redis's own msgpack knows one raw type for text and bytes."""
    return cast(bytes, msgpack.packb(value, use_bin_type=False))


def unpack(data: bytes) -> Any:
    """Unpack text, numbers, lists and maps. Raises one of DecodeError if it cannot."""
    return msgpack.unpackb(data)
