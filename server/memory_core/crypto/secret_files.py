"""Reads a secret from a setting or from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memory_core.errors import UnsafeStart

if TYPE_CHECKING:
    from pydantic import SecretStr


def secret_of(value: SecretStr | None, path: Path | None, name: str) -> str | None:
    """Return a secret; None if it is not set. Raises UnsafeStart if it is set twice, or its file is unusable."""
    if value is not None and path is not None:
        raise UnsafeStart(f"both {name} and {name}_file are set", hint="keep one")
    if path is None:
        return None if value is None else value.get_secret_value()
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UnsafeStart(f"cannot read {name}_file: {type(error).__name__}") from None
    if not text:
        raise UnsafeStart(f"{name}_file is empty", hint="write the secret into it, or leave the setting out")
    return text
