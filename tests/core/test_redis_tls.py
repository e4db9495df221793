"""Redis over TLS: the certificate options of REDIS_URL reach the connection."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support.embedder_fixtures import RedisServer
from support.redis_users import PASSWORDS, SERVER

from memory_core.errors import StoreUnavailable
from memory_core.store.connection import check_server, connect


@asynccontextmanager
async def _tls_proxy(redis: RedisServer, certificate: Path, key: Path) -> AsyncGenerator[int]:
    """A TLS proxy that requires client certificates, in front of a Redis without TLS; yields its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_unix_connection(redis.path)
        await asyncio.gather(pump(reader, to_redis), pump(from_redis, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_certificates_in_the_url_are_used(tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=redis -addext subjectAltName=IP:127.0.0.1"
    await asyncio.to_thread(
        subprocess.run, [*make.split(), "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        async with _tls_proxy(redis, certificate, key) as port:
            url = f"rediss://{SERVER}:{PASSWORDS[SERVER]}@127.0.0.1:{port}/0"
            trusting = f"?ssl_ca_certs={certificate}"
            with_own = f"{trusting}&ssl_certfile={certificate}&ssl_keyfile={key}"
            async with connect(url + with_own) as client:
                await check_server(client)
            for lacking in ("", trusting):
                async with connect(url + lacking) as client:
                    with pytest.raises(StoreUnavailable):
                        await check_server(client)
    finally:
        redis.kill()
