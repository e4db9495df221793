"""Metrics, traces and logs of real processes, and the Prometheus and Grafana files."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema
import pytest
import yaml
from mcp import Client as McpClient
from mcp.client.stdio import StdioServerParameters, stdio_client
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse
from support import observe_fixtures
from support.auth_helpers import issued
from support.embedder_fixtures import wait_until
from support.observe_fixtures import Watched, get, samples, value
from support.otlp import Collector, Span
from support.stack import Agent, Refused, serving

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.observe import tracing
from memory_core.records.keys import Keys, asks
from memory_core.settings.settings import Settings
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.weights import DEFAULT_MODEL
from memory_embedder.metrics import serving_metrics
from memory_embedder.sidecar import Sidecar
from memory_server.security.audit import recorder

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations"
CANARY = "hunter2-canary"
NAMES_IN_EXPRESSION = re.compile(r"\b(?:memory_(?:server|embedder)_|process_)[a-z0-9_]+")
GPU = {f"memory_embedder_gpu_{name}" for name in
       ("utilisation", "memory_used_bytes", "memory_bytes", "temperature_celsius", "power_watts")}  # fmt: skip
watched = observe_fixtures.watched


# Metrics of the server


async def test_calls_are_counted_by_operation_and_outcome(watched: Watched, namespace: str) -> None:
    server = watched.stack.server
    before = await samples(f"{server.url}/metrics")
    async with server.agent("alice", namespace) as alice:
        await alice.store("The harbour master keeps a parrot.")
        await alice.search("who keeps a parrot?")
        await alice.search("who keeps a parrot?")
        with pytest.raises(Refused):
            await alice.call("retrieve_memory", memory_id="none such")
        await alice.call("batch_operations", operations=[{"op": "semantic_search", "query": "parrot"}] * 3)
    after = await samples(f"{server.url}/metrics")

    def grew(name: str, /, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    calls = "memory_server_calls_total"
    assert grew(calls, operation="store_memory", outcome="ok") == 1
    assert grew(calls, operation="semantic_search", outcome="ok") == 5
    assert grew(calls, operation="retrieve_memory") - grew(calls, operation="retrieve_memory", outcome="ok") == 1
    assert grew("memory_server_call_seconds_count", operation="semantic_search") == 5
    assert grew("memory_server_search_seconds_count") == 5
    assert {labels["part"] for labels, _ in after["memory_server_search_part_seconds_count"]} == {
        "understand", "search", "rank",
    }  # fmt: skip
    assert grew("memory_server_cached_vectors_total", found="nowhere") == 3
    assert grew("memory_server_cached_vectors_total", found="process") == 4
    assert grew("memory_server_embedding_seconds_count") >= 3


async def test_queues_tasks_and_sidecars_are_read_from_redis(watched: Watched, namespace: str) -> None:
    server, client = watched.stack.server, watched.stack.client
    async with server.agent("alice", namespace) as alice:
        await alice.call("register_agent", agent_id="alice", agent_type="custom")
        for number in range(3):
            await alice.call("distribute_task", description=f"Task number {number}")
        await alice.call("get_pending_tasks", limit=1)
    await client.xadd(Keys(namespace).dead_jobs, {"id": "x", "rev": "1", "error": "was planted"})

    async def is_counted() -> bool:
        found = await samples(f"{server.url}/metrics")
        tasks = {labels["state"]: number for labels, number in found["memory_server_tasks"]}
        return (
            tasks == {"queued": 2, "leased": 1, "retrying": 0}
            and value(found, "memory_server_dead_jobs") == 1
            and value(found, "memory_server_sidecars", state="ready") == 1
            and value(found, "memory_server_redis_up") == 1
            and value(found, "memory_server_sweeps_total", outcome="done") > 0
            and value(found, "memory_server_audit_entries_total", outcome="written") > 0
        )

    await wait_until(is_counted)
    await client.delete(Keys(namespace).dead_jobs)


async def test_metrics_name_no_agents_namespaces_contents_or_ids(watched: Watched, namespace: str) -> None:
    async with watched.stack.server.agent("cassandra", namespace) as agent:
        memory_id = await agent.store(CANARY, tags=["tagged-canary"], context="context-canary")
        await agent.search(CANARY)
    for url in (f"{watched.stack.server.url}/metrics", watched.embedder_metrics):
        text = (await get(url)).text
        assert not [word for word in (CANARY, "canary", "cassandra", namespace, memory_id) if word in text]
        labels = {label for family in parse(text) for sample in family.samples for label in sample.labels}
        assert labels <= {
            "le", "operation", "outcome", "part", "found", "state", "verdict", "version", "model", "backend", "device",
            "provider",
        }  # fmt: skip


async def test_both_forms_of_the_page_can_be_read(watched: Watched) -> None:
    page = await get(f"{watched.stack.server.url}/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert page.headers["content-type"].startswith("application/openmetrics-text")
    assert {family.name for family in parse_open(page.text)} >= {"memory_server_calls", "process_cpu_seconds"}


async def test_metrics_are_served_while_redis_is_down() -> None:
    async with serving("redis://127.0.0.1:1/0") as server:
        found = await samples(f"{server.url}/metrics")
        assert value(found, "memory_server_redis_up") == 0
        assert "memory_server_namespaces" not in found
        assert value(found, "process_resident_memory_bytes") > 0


async def test_metrics_are_served_only_to_allowed_hosts(watched: Watched) -> None:
    server = watched.stack.server
    assert (await get(f"{server.url}/metrics")).status_code == 200
    assert (await get(f"{server.url}/metrics", Host="evil.example")).status_code == 421
    assert (await get(f"{server.url}/metrics", Origin="https://evil.example")).status_code == 403


async def test_metrics_need_their_own_token_when_tokens_are_on(
    watched: Watched, namespace: str, tmp_path: Path
) -> None:
    stack = watched.stack
    (tmp_path / "token").write_text("only-for-prometheus\n")
    on: dict[str, Any] = {"auth": {"mode": "tokens"}}
    async with serving(stack.redis.url, **on, observe={"metrics_token_file": tmp_path / "token"}) as server:
        url = f"{server.url}/metrics"
        assert (await get(url, Authorization="Bearer only-for-prometheus")).status_code == 200
        agent = await issued(server, "alice", namespace)
        for wrong in ({}, {"Authorization": "Bearer other"}, {"Authorization": f"Bearer {agent}"}):
            refused = await get(url, **wrong)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
        async with httpx2.AsyncClient(headers={"Authorization": "Bearer only-for-prometheus"}) as client:
            assert (await client.post(f"{server.url}/mcp", json={})).status_code == 401
    async with serving(stack.redis.url, **on) as closed:
        assert (await get(f"{closed.url}/metrics")).status_code == 401


def test_lost_audit_entries_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MOST_HELD", 2)
    held = recorder.Recorder()
    for _ in range(5):
        held.add("team", {"who": "alice", "op": "retrieve_memory", "from": "here", "outcome": "ok"})
    assert (held.held, held.lost_total, held.written_total) == (2, 3, 0)
    held.done(held.batches()[0])
    assert held.written_total == 3  # two entries, and one that reports three lost


# Metrics of the sidecar


async def test_sidecar_metrics_show_its_work_and_device(watched: Watched, namespace: str) -> None:
    before = await samples(watched.embedder_metrics)
    async with watched.stack.server.agent("alice", namespace) as alice:
        await alice.store("One that is waited for.")
        await alice.store("One that is not.", wait=False)

    async def is_counted() -> bool:
        after = await samples(watched.embedder_metrics)
        return value(after, "memory_embedder_jobs_total", verdict="ok") > value(
            before, "memory_embedder_jobs_total", verdict="ok"
        )

    await wait_until(is_counted)
    after = await samples(watched.embedder_metrics)
    assert value(after, "memory_embedder_asks_total", outcome="answered") > value(
        before, "memory_embedder_asks_total", outcome="answered"
    )
    assert value(after, "memory_embedder_batch_texts_sum") == value(after, "memory_embedder_texts_total")
    assert value(after, "memory_embedder_ready") == 1
    [(info, _)] = after["memory_embedder_info"]
    assert (info["model"], info["device"]) == ("all-MiniLM-L6-v2", "cpu")
    assert "texts/s" not in info["provider"]


async def test_metrics_port_in_use_is_reported(watched: Watched) -> None:
    port = int(watched.embedder_metrics.rpartition(":")[2].partition("/")[0])
    sidecar = Sidecar(watched.stack.redis.url, FakeEncoder())
    with pytest.raises(InvalidArgument, match="cannot serve metrics on"), serving_metrics(sidecar, "127.0.0.1", port):
        pass


# The files for Prometheus and Grafana


def expressions() -> dict[str, str]:
    """Every expression of the rules and the dashboard, by its location."""
    rules = yaml.safe_load((OPERATIONS / "alerts.yml").read_text())
    found = {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    board = json.loads((OPERATIONS / "grafana/redis-memory.json").read_text())
    targets = [(panel["title"], target) for panel in board["panels"] for target in panel.get("targets", ())]
    return found | {f"{title} {target['refId']}": target["expr"] for title, target in targets}


async def test_every_metric_in_rules_and_dashboard_exists(watched: Watched, namespace: str) -> None:
    async with watched.stack.server.agent("alice", namespace) as alice:
        await alice.search(await alice.store("Something to be counted.") and "counted")
    served = {*(await samples(f"{watched.stack.server.url}/metrics")), *(await samples(watched.embedder_metrics)), *GPU}
    named = {name: where for where, text in expressions().items() for name in NAMES_IN_EXPRESSION.findall(text)}
    assert named.keys() <= served, {name: where for name, where in named.items() if name not in served}
    used = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    unused = {name for name in served if name.startswith("memory_") and not name.endswith(("_created", "_info"))}
    unused = {re.sub(r"_(bucket|sum|count)$", "", name) for name in unused} - used
    assert unused <= {
        "memory_server_namespaces", "memory_server_audit_entries_held", "memory_embedder_ready",
        "memory_embedder_refused_namespaces", "memory_embedder_texts_per_second", "memory_embedder_batch_tokens",
    }  # fmt: skip


def test_rules_and_dashboard_are_complete() -> None:
    rules = [
        rule for group in yaml.safe_load((OPERATIONS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert {"summary", "action"} == rule["annotations"].keys()
    board = json.loads((OPERATIONS / "grafana/redis-memory.json").read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(ids)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])
    for expression in expressions().values():
        for opening, closing in ("()", "[]", "{}"):
            assert expression.count(opening) == expression.count(closing)


# Traces


async def test_trace_of_a_store_spans_call_stream_and_commit(watched: Watched, namespace: str) -> None:
    async with watched.stack.server.agent("alice", namespace) as alice:
        await alice.store(f"{CANARY} is followed.", wait=False)

    await wait_until(lambda: _has(watched.collector, "rm1_commit"))
    spans = watched.collector.trace_of("rm1_commit")
    line = [*_ancestry(spans, "rm1_commit")]
    assert [(span.service, span.name) for span in line] == [
        ("redis-memory-embedder", "rm1_commit"),
        ("redis-memory-embedder", "embed_job"),
        ("redis-memory", "store_memory"),
    ]
    assert line[1].attributes == {"verdict": "ok", "delivery": 1}
    assert line[2].attributes == {"outcome": "ok"}
    assert [span.parent for span in spans if span.name == "rm1_store"] == [line[2].id]


async def test_trace_of_a_search_reaches_the_sidecar_and_joins_the_clients(watched: Watched, namespace: str) -> None:
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    meta: Any = {"traceparent": f"00-{trace}-{parent}-01"}
    async with watched.stack.server.agent("alice", namespace) as alice:
        await alice.store("Something else.")
        await alice.client.call_tool("semantic_search", {"query": CANARY}, meta=meta)

    async def answered() -> bool:
        return any(span.trace == trace and span.name == "semantic_search" for span in watched.collector.spans) and any(
            span.trace == trace and span.name == "embed_ask" for span in watched.collector.spans
        )

    await wait_until(answered)
    spans = [span for span in watched.collector.spans if span.trace == trace]
    assert [span.name for span in _ancestry(spans, "embed_ask")] == ["embed_ask", "embed", "semantic_search"]
    assert next(span for span in spans if span.name == "semantic_search").parent == parent
    assert CANARY.encode() not in watched.collector.raw
    assert namespace.encode() not in watched.collector.raw


async def test_trace_field_of_messages_matches_the_schema(watched: Watched, namespace: str) -> None:
    client, names = watched.stack.client, Keys(namespace)
    watched.stack.sidecar.kill()
    try:
        async with watched.stack.server.agent("alice", namespace) as alice:
            await alice.store("Nobody embeds this yet.", wait=False)
        [(_, job)] = await client.xrange(names.jobs(DEFAULT_MODEL))
        assert b"trace" in job
        for name, fields in (("job", job), *[("ask", entry) for entry in await _last_asks(client)]):
            schema = json.loads((ROOT / f"schemas/{name}.json").read_text())
            text = {key.decode(): found.decode("latin-1") for key, found in fields.items()}
            jsonschema.validate(text, schema)
    finally:
        watched.stack.sidecar.start()


async def test_tracing_is_not_imported_without_a_collector() -> None:
    names = "('opentelemetry.sdk.trace', 'opentelemetry.exporter')"  # redis-py looks for others automatically
    imports = "import sys, memory_embedder.cli, memory_embedder.sidecar"
    code = f"{imports}\nprint([name for name in sys.modules if name.startswith({names})])"
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert (await done.communicate())[0].strip() == b"[]"
    assert not tracing.is_configured(Settings.load())


def test_configured_collector_without_tracing_packages_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_tracer", None)  # another server in this module may trace
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(NotSupported, match="OpenTelemetry"):
        tracing.start(Settings.load(observe={"traces": "http://localhost:4318"}), "x", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    tracing.start(Settings.load(), "x", "1")
    assert "nothing is traced" in caplog.text


async def _has(collector: Collector, name: str) -> bool:
    return any(span.name == name for span in collector.spans) and any(
        span.name == "store_memory" for span in collector.trace_of(name)
    )


async def _last_asks(client: Any) -> list[dict[bytes, bytes]]:
    return [fields for lane in range(2) for _, fields in await client.xrevrange(asks(lane, DEFAULT_MODEL), count=1)]


def _ancestry(spans: list[Span], name: str) -> Generator[Span]:
    """A span and its ancestors."""
    span = next((span for span in spans if span.name == name), None)
    while span is not None:
        yield span
        above = span.parent
        span = next((span for span in spans if span.id == above), None)


# Logs


async def test_json_log_has_the_request_and_no_content(watched: Watched, namespace: str, tmp_path: Path) -> None:
    log = tmp_path / "stderr"
    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-m", "memory_server", "serve", "--stdio", "--agent", "alice", "--namespace", namespace],
        env={
            **os.environ,
            "REDIS_URL": watched.stack.redis.url,
            "MEMORY_LOG_FORMAT": "json",
            "MEMORY_OBSERVE__LOG_CALLS": "true",
        },
    )
    with log.open("w") as errlog:
        async with McpClient(stdio_client(parameters, errlog=errlog)) as client:
            alice = Agent(client)
            await alice.store(CANARY)
            with pytest.raises(Refused):
                await alice.call("retrieve_memory", memory_id=CANARY)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all({"at", "level", "logger", "message"} <= line.keys() for line in lines)
    calls = [line for line in lines if "operation" in line]
    assert [(line["operation"], line["outcome"]) for line in calls] == [
        ("store_memory", "ok"), ("retrieve_memory", "not_found"),
    ]  # fmt: skip
    assert len({line["request"] for line in calls}) == 2
    assert CANARY not in log.read_text()
