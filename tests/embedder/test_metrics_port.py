"""Slow clients of a sidecar's metrics hold few threads, and only for a time."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from contextlib import ExitStack, suppress

import pytest
from prometheus_client import CollectorRegistry

from memory_embedder import metrics


def _answer(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return answer.status


@pytest.mark.long
def test_slow_clients_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CLIENT_SECONDS", 0.5)
    with metrics.serving_registry(CollectorRegistry(), "127.0.0.1", 0) as port, ExitStack() as opened:
        before = threading.active_count()
        slow = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(60)]
        for one in slow:
            one.sendall(b"GET /metrics HTTP/1.1\r\nX-A: ")
        assert threading.active_count() - before <= 2 * metrics.CLIENTS
        deadline = time.monotonic() + 10.0
        for one in slow:
            one.settimeout(max(deadline - time.monotonic(), 0.1))
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
        time.sleep(0.1)
        assert _answer(port) == 200
