"""What child processes inherit of the environment: an allow-list without tokens, keys and other addresses."""

from __future__ import annotations

import os
from collections.abc import Mapping

_BASIC = {
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "SYSTEMROOT"),
    *("XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LD_PRELOAD"),
}
_BASIC_PREFIXES = ("LC_", "MALLOC_")
_PYTHON = {
    *("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "PYTHONUTF8", "VIRTUAL_ENV"),
    *(
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "TOKENIZERS_PARALLELISM",
    ),
    *("MEMORY_LOG_LEVEL", "MEMORY_LOG_FORMAT", "MEMORY_GPU", "MEMORY_VECTOR_STORE", "MEMORY_BULK"),
}
_PYTHON_PREFIXES = (
    *("MEMORY_GPU__", "MEMORY_VECTOR_STORE__", "MEMORY_BULK__", "OTEL_", "COVERAGE_"),
    *("CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "ZE_", "ONEAPI_", "SYCL_", "ORT_", "OV_", "OPENVINO_"),
    *("OMP_", "KMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "TORCH_", "PYTORCH_"),
)


def for_programs(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what a program of others gets, such as Redis."""
    return {name: value for name, value in environ.items() if name in _BASIC or name.startswith(_BASIC_PREFIXES)}


def for_sidecars(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return what a sidecar and its supervisor get: also the settings of the engines."""
    own = {name: value for name, value in environ.items() if name in _PYTHON or name.startswith(_PYTHON_PREFIXES)}
    return for_programs(environ) | own
