"""All installed encoders give the same vectors, within the limits of their precision."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import embedder_fixtures

from memory_core.errors import InvalidArgument, NotSupported
from memory_core.settings.settings import GpuSettings
from memory_embedder import gpu_check, sidecar
from memory_embedder.devices import nvml
from memory_embedder.devices.nvml import GpuReading, nvidia_gpus, open_nvidia_reader
from memory_embedder.engines import backends, catalogue, trials
from memory_embedder.engines.backends import load_encoder
from memory_embedder.engines.catalogue import EngineName, open_engine, usable_engines
from memory_embedder.engines.encoder import Encoder, encode
from memory_embedder.engines.encoder_options import EncoderOptions, Hint
from memory_embedder.engines.fake import FakeEncoder
from memory_embedder.engines.onnx import OnnxEncoder
from memory_embedder.engines.parity import MIN_COSINE, MIN_COSINE_INT8, SENTENCES, lowest_cosine
from memory_embedder.engines.trials import (
    TrialRequest,
    TrialResult,
    measure,
    rank,
    run_trial,
    trial_results,
    trial_summary,
)
from memory_embedder.engines.weights import DEFAULT_MODEL

minilm = embedder_fixtures.minilm
CPU_ONLY = GpuSettings(preferred_device="cpu")
OPTIONS = EncoderOptions(DEFAULT_MODEL, CPU_ONLY, threads=2)


@pytest.fixture(scope="module", params=["throughput", "latency"])
def openvino(request: pytest.FixtureRequest) -> Encoder:
    """OpenVINO with the packaged weights, for each hint."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'redis-memory-gpu[local]'")
    hint: Hint = request.param
    return open_engine("openvino", EncoderOptions(DEFAULT_MODEL, CPU_ONLY, 2, hint))


def test_openvino_agrees_with_onnx_runtime(openvino: Encoder, minilm: OnnxEncoder) -> None:
    floor = MIN_COSINE_INT8 if " int8" in openvino.provider else MIN_COSINE
    assert lowest_cosine(encode(openvino, SENTENCES), encode(minilm, SENTENCES)) >= floor


def test_openvino_reports_its_properties(openvino: Encoder) -> None:
    assert (openvino.name, openvino.dimension, openvino.max_tokens) == (DEFAULT_MODEL, 384, 256)
    assert (openvino.backend, openvino.device, openvino.fallback) == ("openvino", "cpu", "")
    assert openvino.provider.startswith("OpenVINO CPU ")


def test_openvino_rows_are_in_the_order_of_the_texts(openvino: Encoder) -> None:
    texts = ["a long text of boats " * 30, "tiny", "of middling length about harbours", "b " * 90, "z", "tiny"]
    together = openvino.infer(openvino.tokenise(texts))
    alone = np.concatenate([openvino.infer(openvino.tokenise([text])) for text in texts])
    assert lowest_cosine(together, alone) >= MIN_COSINE
    assert openvino.infer(openvino.tokenise([])).shape == (0, 384)
    spare_core = openvino.infer(openvino.tokenise(texts), spare_core=True)
    assert lowest_cosine(spare_core, together) >= MIN_COSINE


def test_exact_openvino_equals_onnx_runtime_in_float32(openvino: Encoder, minilm: OnnxEncoder) -> None:
    del openvino
    exact = open_engine("openvino", EncoderOptions(DEFAULT_MODEL, CPU_ONLY, 2, exact=True))
    assert " f32" in exact.provider
    assert lowest_cosine(encode(exact, SENTENCES), encode(minilm, SENTENCES)) >= 0.99999


def test_openvino_reports_a_missing_device(openvino: Encoder) -> None:
    del openvino
    options = EncoderOptions(DEFAULT_MODEL, GpuSettings(preferred_device="cuda:0"), 2)
    assert "cuda:0" in open_engine("openvino", options).fallback
    strict = GpuSettings(preferred_device="cuda:0", fallback_to_cpu=False)
    with pytest.raises(NotSupported, match="cuda:0"):
        open_engine("openvino", EncoderOptions(DEFAULT_MODEL, strict))


@pytest.mark.parametrize("engine", ["onnx", "openvino", "torch"])
def test_missing_package_error_names_the_extra(engine: EngineName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "find_spec", _no_package)
    with pytest.raises(NotSupported, match=r"the package \w+ is missing") as caught:
        open_engine(engine, OPTIONS)
    assert "redis-memory-gpu[" in caught.value.hint
    assert usable_engines(OPTIONS) == []


def _no_package(_name: str) -> None:
    return None


# --- trials


def test_engines_are_ranked_by_accelerator_then_speed() -> None:
    results = [
        TrialResult(engine="onnx", device="cpu", texts_per_second=90),
        TrialResult(engine="openvino", device="cpu", texts_per_second=400),
        TrialResult(engine="torch", device="cuda:0", texts_per_second=300),
    ]
    assert [figure.engine for figure in rank(results)] == ["torch", "openvino", "onnx"]
    broken = [results[0], TrialResult(engine="torch", problem="no weights")]
    assert [figure.engine for figure in rank(broken)] == ["onnx"]
    assert trial_summary(broken) == "onnx 90 texts/s on cpu, torch failed: no weights"


def test_trials_are_repeated_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def figure(engine: EngineName, _options: EncoderOptions) -> TrialResult:
        tried.append(engine)
        return TrialResult(engine=engine, device="cpu", texts_per_second=len(tried))

    monkeypatch.setattr(trials, "run_trial", figure)
    file = tmp_path / "cache" / "backends.json"
    first = trial_results(["onnx", "openvino"], OPTIONS, file)
    assert trial_results(["onnx", "openvino"], OPTIONS, file) == first
    assert tried == ["onnx", "openvino"]
    trial_results(["onnx", "openvino"], EncoderOptions(DEFAULT_MODEL, CPU_ONLY, threads=1), file)
    assert len(tried) == 4
    trial_results(["onnx", "openvino"], OPTIONS, file)
    assert len(tried) == 4
    for damage in ("not json", "[]", '{"x": 1}'):
        file.write_text(damage)
        trial_results(["onnx"], OPTIONS, file)
    assert len(tried) == 7
    assert [entry.name for entry in file.parent.iterdir()] == ["backends.json"]


def test_unwritable_trial_cache_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "run_trial", lambda engine, _options: TrialResult(engine=engine, texts_per_second=1))  # pyright: ignore[reportUnknownLambdaType]
    (tmp_path / "file").touch()
    assert trial_results(["onnx"], OPTIONS, tmp_path / "file" / "backends.json")[0].texts_per_second == 1


def test_trial_runs_in_a_separate_process(monkeypatch: pytest.MonkeyPatch) -> None:
    figure = run_trial("onnx", OPTIONS)
    assert (figure.engine, figure.device, figure.problem) == ("onnx", "cpu", "")
    assert figure.texts_per_second > 1
    assert "no weights" in run_trial("onnx", EncoderOptions("no-such-model")).problem
    monkeypatch.setattr(trials, "LOAD_SECONDS", 0.01)
    assert "not ready" in run_trial("onnx", OPTIONS).problem
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(trials, "LOAD_SECONDS", 10)
    assert run_trial("onnx", OPTIONS).problem == "its process ended without a result"


def test_trial_reports_the_error_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode(_engine: str, _options: EncoderOptions) -> Encoder:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(trials, "open_engine", explode)
    request = TrialRequest(engine="onnx", options=EncoderOptions("x"))
    assert measure(request).problem == "RuntimeError: illegal instruction"


def test_auto_opens_the_best_working_engine_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        TrialResult(engine="torch", device="cuda:0", texts_per_second=9000),
        TrialResult(engine="onnx", device="cpu", texts_per_second=90),
    ]
    monkeypatch.setattr(backends, "usable_engines", lambda _options: ["onnx", "torch"])  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(backends, "trial_results", lambda _engines, _options: results)  # pyright: ignore[reportUnknownLambdaType]
    found = catalogue.find_spec

    def without_torch(name: str) -> Any:
        return None if name == "torch" else found(name)

    monkeypatch.setattr(catalogue, "find_spec", without_torch)
    encoder = load_encoder("auto", OPTIONS)
    assert encoder.backend == "onnx"
    assert "torch 9000 texts/s on cuda:0, onnx 90 texts/s on cpu" in encoder.provider


def test_auto_with_one_engine_runs_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "usable_engines", lambda _options: ["onnx"])  # pyright: ignore[reportUnknownLambdaType]
    assert load_encoder("auto", OPTIONS).provider == "CPUExecutionProvider"


def test_auto_without_weights_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="'no-such-model'"):
        load_encoder("auto", EncoderOptions("no-such-model"))


# --- GPU readings


class FakeNvml(SimpleNamespace):
    """Two GPUs. The first supports only memory, the second all queries."""

    NVML_TEMPERATURE_GPU = 0

    def nvmlInit(self) -> None:
        """Start the library."""

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return [0, 1][number]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return {"GPU-b": 1}[uuid]

    def nvmlDeviceGetName(self, handle: int) -> str:
        return f"Accelerator {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=(handle + 1) << 30, total=80 << 30)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if handle == 0:
            raise RuntimeError("Not Supported")
        return SimpleNamespace(gpu=37)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        if handle == 0:
            raise RuntimeError("Not Supported")
        return 61 + sensor

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if handle == 0:
            raise RuntimeError("Not Supported")
        return 312_500


def test_nvml_reads_the_gpu_that_the_engine_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    full = GpuReading(memory_used=2 << 30, memory_total=80 << 30, utilisation=0.37, temperature=61.0, power=312.5)
    assert _read("cuda:1") == full
    assert _read("cuda:0") == GpuReading(memory_used=1 << 30, memory_total=80 << 30)
    for visible in ("1", "1,0", "GPU-b"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert _read("cuda:0") == full


def _read(device: str) -> GpuReading | None:
    reader = open_nvidia_reader(device, FakeNvml())
    return reader.read() if reader else None


def test_no_nvml_reader_without_gpu_or_library(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_nvidia_reader("cpu", FakeNvml()) is None
    assert open_nvidia_reader("cuda:7", FakeNvml()) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvidia_reader("cuda:0") is None
    assert nvidia_gpus() == []
    assert nvidia_gpus(FakeNvml()) == ["Accelerator 0", "Accelerator 1"]


# --- make gpu-check


def test_gpu_check_prints_skipped_without_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_gpus", list)  # pyright: ignore[reportUnknownLambdaType]
    assert gpu_check.main(["--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "SKIPPED: no GPU"


def test_gpu_check_fails_if_no_backend_uses_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "nvidia_gpus", lambda: ["H200"])  # pyright: ignore[reportUnknownLambdaType]
    assert gpu_check.main(["--device", "cpu"]) == 1
    assert "FAILED: H200 found" in capsys.readouterr().out


@pytest.mark.parametrize(("noise", "code", "verdict"), [(0.0, 0, "PASSED"), (0.1, 1, "FAILED")])
def test_gpu_check_compares_with_the_cpu(
    noise: float,
    code: int,
    verdict: str,
    minilm: OnnxEncoder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Accelerated:
        """A pretended GPU: the CPU's vectors with noise."""

        name, dimension, max_tokens = minilm.name, minilm.dimension, minilm.max_tokens
        backend, device, provider, fallback = "onnx", "cuda:0", "made up", ""
        tokenise = minilm.tokenise

        def infer(self, tokens: Any, *, spare_core: bool = False) -> Any:
            vectors = minilm.infer(tokens) + noise * np.random.default_rng(1).standard_normal(384)
            return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def open_fake(_engine: str, options: EncoderOptions) -> Any:
        return minilm if options.exact else Accelerated()

    monkeypatch.setattr(gpu_check, "open_engine", open_fake)
    monkeypatch.setattr(gpu_check, "usable_engines", lambda _options: ["onnx"])  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(gpu_check, "_TEXTS", SENTENCES)
    assert gpu_check.main([]) == code
    assert capsys.readouterr().out.splitlines()[-1] == verdict


def test_heartbeat_of_a_gpu_sidecar_has_gpu_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar, "open_nvidia_reader", lambda _device: nvml.open_nvidia_reader("cuda:1", FakeNvml()))  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    status = sidecar.Sidecar("redis://nowhere", FakeEncoder()).status()
    assert (status.memory_used, status.memory_total) == (2 << 30, 80 << 30)
    assert (status.utilisation, status.temperature) == (0.37, 61.0)
