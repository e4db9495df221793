"""Reading an AMD GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from memory_embedder.devices import rocm


def test_amd_gpu_is_read_from_the_files_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hand-made files of the amdgpu driver, because no AMD GPU was available."""
    for card, vendor in (("card0", "0x8086"), ("card1", "0x1002"), ("card2", "0x1002")):
        bus = tmp_path / "bus" / f"0000:0{card[-1]}:00.0"
        (bus / "hwmon/hwmon3").mkdir(parents=True)
        (bus / "vendor").write_text(f"{vendor}\n")
        (tmp_path / "drm" / card).mkdir(parents=True)
        (tmp_path / "drm" / card / "device").symlink_to(bus)
    (tmp_path / "drm" / "card1-DP-1").mkdir()
    second = tmp_path / "drm/card2/device"
    files = {"gpu_busy_percent": "37", "mem_info_vram_used": "1024", "mem_info_vram_total": "4096"}
    files |= {"hwmon/hwmon3/temp1_input": "61000", "hwmon/hwmon3/power1_average": "250000000"}
    for name, content in files.items():
        (second / name).write_text(f"{content}\n")
    reader = rocm.open_amd_reader("rocm:1", tmp_path / "drm")
    assert reader is not None
    assert reader.read() == rocm.GpuReading(1024, 4096, 0.37, 61.0, 250.0)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1")
    shown = rocm.open_amd_reader("cuda:0", tmp_path / "drm")
    assert shown is not None
    assert shown.read().power == 250.0
    assert rocm.open_amd_reader("rocm:1", tmp_path / "drm") is None
    assert rocm.open_amd_reader("cpu", tmp_path / "drm") is None
    assert len(rocm.amd_gpus(tmp_path / "drm")) == 2
