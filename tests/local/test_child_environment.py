"""Redis, the supervisor and the sidecar inherit only what they need of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.local_helpers import SIDECAR, attached, running, until

from memory_core.settings.environment import for_programs, for_sidecars

SECRETS = {
    name: f"secret-of-{name}"
    for name in (
        *("AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN", "OPENAI_API_KEY", "DATABASE_URL"),
        *("MEMORY_TOKEN", "MEMORY_MASTER_KEY", "MEMORY_MASTER_KEY_COMMAND", "memory_master_key", "MEMORY_REDIS"),
        *("MEMORY_REDIS__PASSWORD", "MEMORY_OBSERVE", "MEMORY_OBSERVE__METRICS_TOKEN", "MEMORY_AUTH__ISSUER"),
    )
}
NEEDED = {"PATH": "/bin", "HOME": "/home/ann", "LC_ALL": "C.UTF-8"}
ENGINES = {"MEMORY_GPU__PREFERRED_DEVICE": "cpu", "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "1"}


def test_children_inherit_what_they_need_and_no_secrets() -> None:
    everything = {**SECRETS, **NEEDED, **ENGINES}
    assert for_programs(everything) == NEEDED
    assert for_sidecars(everything) == {**NEEDED, **ENGINES}


async def test_running_children_hold_no_secret_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    async with attached(tmp_path / "data", sidecar=SIDECAR) as local:
        await until(lambda: running(local).sidecar_pid)
        state = running(local)
        for pid in (state.supervisor_pid, state.sidecar_pid):  # Redis hides its environment, a part of the supervisor's
            environment = Path(f"/proc/{pid}/environ").read_bytes()  # noqa: ASYNC240
            assert b"PATH=" in environment
            assert b"secret-of-" not in environment, pid
