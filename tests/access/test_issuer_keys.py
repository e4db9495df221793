"""A slow, huge, broken or silent source of an issuer's keys neither holds up callers nor keeps withdrawn keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm

from memory_core.errors import IssuerUnavailable
from memory_server.access import issuer_keys
from memory_server.access.issuer_keys import IssuerKeys

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def key_set(*key_ids: str) -> bytes:
    key = json.loads(RSAAlgorithm.to_jwk(generate_private_key(65537, 2048).public_key()))
    return json.dumps({"keys": [key | {"kid": each} for each in key_ids]}).encode()


class Source:
    """An issuer that sends `body`, and then `drip` a byte at a time until the client leaves."""

    def __init__(self) -> None:
        self.url = ""
        self.body = key_set("first")
        self.drip = False
        self.flood = False
        self.asked = 0
        self.sent = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        try:
            writer.write(HEAD)
            while self.drip:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
            while self.flood and self.sent < 300_000_000:
                writer.write(b" " * 65_536)
                await writer.drain()
                self.sent += 65_536
            writer.write(self.body)
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@pytest_asyncio.fixture(loop_scope="session")
async def source(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Source]:
    monkeypatch.setattr(issuer_keys, "COOL_SECONDS", 0.0)
    found = Source()
    server = await asyncio.start_server(found.answer, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    yield found
    server.close()


def ids(*found: Any) -> list[str | None]:
    return [each and each.key_id for each in found]


async def test_known_key_is_found_while_the_source_drips(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = IssuerKeys(source.url)
    await keys.find("first")
    monkeypatch.setattr(issuer_keys, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(issuer_keys, "FETCH_SECONDS", 0.5)
    source.drip = True
    async with asyncio.timeout(0.3):
        assert ids(*[await keys.find("first") for _ in range(20)]) == ["first"] * 20
    async with asyncio.timeout(5):
        assert await keys.find("unknown") is None
    assert source.asked == 2


async def test_old_keys_are_renewed_in_the_background(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = IssuerKeys(source.url)
    await keys.find("first")
    source.body = key_set("second")
    monkeypatch.setattr(issuer_keys, "FRESH_SECONDS", 0.0)
    assert ids(await keys.find("first")) == ["first"]
    async with asyncio.timeout(5):
        while await keys.find("first"):
            await asyncio.sleep(0.01)
    assert ids(await keys.find("second")) == ["second"]


async def test_keys_of_a_silent_source_end_at_the_maximum_age(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = IssuerKeys(source.url)
    await keys.find("first")
    source.body = b"no JSON"
    monkeypatch.setattr(issuer_keys, "MAX_AGE_SECONDS", 0.0)
    with pytest.raises(IssuerUnavailable):
        await keys.find("first")


async def test_endless_answer_is_cut_off(source: Source) -> None:
    source.flood = True
    with pytest.raises(IssuerUnavailable):
        await IssuerKeys(source.url).find("first")
    assert source.sent < 20_000_000


async def test_huge_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with path.open("wb") as file:
        file.truncate(300_000_000)
    with pytest.raises(IssuerUnavailable):
        await IssuerKeys(str(path)).find("first")


@pytest.mark.parametrize(
    "bad",
    [{"kty": "oct", "k": "AAAA"}, {"kty": "RSA", "n": "AQ", "e": "AQAB"}, {"kty": "none"}, {"use": "enc"}, {}],
)
async def test_unusable_key_does_not_hide_the_others(tmp_path: Path, bad: dict[str, str]) -> None:
    good = json.loads(key_set("good"))["keys"][0]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [(good if "use" in bad else {}) | {"kid": "bad"} | bad, good]}))
    keys = IssuerKeys(str(path))
    assert ids(await keys.find("bad"), await keys.find("good")) == [None, "good"]
