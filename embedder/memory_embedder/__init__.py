"""The embedding sidecar: reads texts from Redis streams, embeds them in batches, and writes the vectors back."""

import os
import sys
from typing import Any, cast

# Nothing phones home. The libraries read these when they are imported, so this comes before every other import.
# ONNX Runtime would look up its telemetry host and write a device id into the home directory.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# The Hugging Face libraries would ask a model hub, also about models that are in the cache.
os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
# OpenVINO would send an event to an analytics host; it goes on without its telemetry package.
cast(dict[str, Any], sys.modules)["openvino_telemetry"] = None
