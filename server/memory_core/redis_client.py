"""The type of a Redis client, for modules that receive one."""

from __future__ import annotations

from typing import Any

Client = Any
"""A redis.asyncio.Redis. redis-py types each answer as a union over protocols and decodings that we never use."""
