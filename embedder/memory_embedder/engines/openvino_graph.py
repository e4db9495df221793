"""Unpacks int8 weights in an OpenVINO graph, because bf16 kernels need unpacked weights.

With weights that are stored as int8 and scaled at run time, OpenVINO also quantises the activations (less accurate)
or unpacks the weights at every call (slower).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Values = NDArray[np.float32]
_ARITHMETIC: dict[str, Callable[[_Values, _Values], _Values]] = {"Multiply": np.multiply, "Subtract": np.subtract}


def has_int8_weights(model: Any) -> bool:
    """Whether the graph stores a matrix in 8 bits."""
    return any(_packed_value(node) is not None for node in model.get_ordered_ops())


def unpack_weights(model: Any) -> None:
    """Replace every packed matrix of a multiplication by its float32 values, in place."""
    opset: Any = importlib.import_module("openvino.opset13")
    for node in model.get_ordered_ops():
        values = _packed_value(node)
        if values is not None:
            node.output(0).replace(opset.constant(values).output(0))


def _packed_value(node: Any) -> _Values | None:
    """The output of a scaling node, if it is a constant matrix stored in 8 bits.

    An embedding table stays packed: only the few rows that are looked up are unpacked anyway.
    """
    users = {use.get_node().get_type_name() for use in node.output(0).get_target_inputs()} if _scales(node) else set()
    if not users or "Gather" in users or len(node.get_output_partial_shape(0)) != 2:
        return None
    stored = node.input_value(0).get_node()
    while stored.get_type_name() in {"Convert", "Subtract"}:
        stored = stored.input_value(0).get_node()
    if stored.get_type_name() != "Constant" or stored.get_element_type().get_type_name() not in {"i8", "u8"}:
        return None
    return _value(node)


def _scales(node: Any) -> bool:
    return node.get_type_name() == "Multiply"


def _value(node: Any) -> _Values | None:
    kind = node.get_type_name()
    if kind == "Constant":
        return node.data.astype(np.float32)
    if kind == "Convert":
        return _value(node.input_value(0).get_node())
    if kind in _ARITHMETIC:
        left, right = (_value(node.input_value(side).get_node()) for side in (0, 1))
        return None if left is None or right is None else _ARITHMETIC[kind](left, right)
    return None
