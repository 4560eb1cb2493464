"""Altered copies of an exported graph over the same data file, which the check runs beside the shipped graph.

``exact``       activations stay fp32: MatMulNBits runs at accuracy level 1, and fp16 parts are computed in fp32 with
                new RoPE tables. onnxruntime has no such kernel for 8-bit experts: a separate operator dequantizes
                them, which takes the memory of fp32 experts.
``observed``    the hidden states that the reference can show are added as outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.onnx.foreign import builder_sites
from qwen3_export.targets.onnx.names import COS_CACHE, rope_caches, site_name

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["exact", "observed", "observed_sites", "to_sites"]

FLOAT, UINT8, FLOAT16 = 1, 2, 10
EXPERT_BITS = 8

# Inputs of QMoE for fc1 and fc2: codes, scales, zero points; then the input of MoE that takes the matrix.
EXPERTS = ((2, 3, 11, 2), (5, 6, 12, 4))
MOE_ATTRIBUTES = (
    "k",
    "activation_type",
    "activation_alpha",
    "activation_beta",
    "swiglu_fusion",
    "normalize_routing_weights",
)


def exact(proto: ModelProto, config: Qwen3Config) -> ModelProto:
    """A copy that computes in fp32."""
    found = _copy(proto)
    for node in found.graph.node:
        if node.op_type in ("MatMulNBits", "QMoE"):
            _set(node, "accuracy_level", 1)
    _dequantize_experts(found)
    _to_fp32(found, config)
    return found


def observed(proto: ModelProto, graph: Graph) -> ModelProto:
    """A copy with an output for each site for which the graph has a value."""
    from onnx import ValueInfoProto

    found = _copy(proto)
    made = {name for node in found.graph.node for name in node.output}
    known = {output.name for output in found.graph.output}
    for name in observed_sites(graph):
        if name in made and name not in known:
            found.graph.output.append(ValueInfoProto(name=name))
    return found


def observed_sites(graph: Graph) -> dict[str, Site]:
    """Sites by the names of their values. For rotated keys, this is the value that goes to the cache."""
    layers = range(graph.config.num_hidden_layers)
    inside = (Place.Q_ROPE, Place.ATTENTION, Place.AFTER_ATTENTION, Place.MLP, Place.OUTPUT)
    sites = [Site(Place.INPUT, 0), Site(Place.FINAL), *(Site(place, layer) for layer in layers for place in inside)]
    keys = {f"present.{layer}.key": Site(Place.K_ROPE, layer) for layer in layers}
    return {site_name(site): site for site in sites} | keys | builder_sites(graph.config.num_hidden_layers)


def to_sites(outputs: dict[str, np.ndarray], graph: Graph) -> dict[Site, np.ndarray]:
    """Outputs of one sequence in the reference's layout. Keys are [K, T, H] here and [T, K, H] there."""
    sites = observed_sites(graph)
    return {
        sites[name]: values[0].transpose(1, 0, 2) if sites[name].place is Place.K_ROPE else values[0]
        for name, values in outputs.items()
        if name in sites
    }


def _copy(proto: ModelProto) -> ModelProto:
    found = type(proto)()
    found.CopyFrom(proto)
    return found


def _set(node: NodeProto, name: str, value: int) -> None:
    from onnx.helper import make_attribute

    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, make_attribute(name, value)])


def _dequantize_experts(proto: ModelProto) -> None:
    """Replace each QMoE of 8 bits by MoE over DequantizeLinear."""
    from onnx.helper import make_node, make_tensor

    dims = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    nodes: list[Any] = []
    for node in proto.graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "QMoE" or attributes["expert_weight_bits"].i != EXPERT_BITS:
            nodes.append(node)
            continue
        inputs = [*node.input[:2], "", "", ""]
        for codes, scales, zero_points, place in EXPERTS:
            name = node.input[codes]
            zeros = node.input[zero_points] if len(node.input) > zero_points else ""
            if not zeros:
                zeros = f"{name}.zero_points"
                shape = dims[node.input[scales]]
                data = b"\x80" * int(np.prod(shape))
                proto.graph.initializer.append(make_tensor(zeros, UINT8, shape, data, raw=True))
            size = attributes["block_size"].i
            dequantized = [name, node.input[scales], zeros]
            nodes.append(make_node("DequantizeLinear", dequantized, [f"{name}.fp32"], axis=2, block_size=size))
            inputs[place] = f"{name}.fp32"
        mixture = make_node("MoE", inputs, list(node.output), domain=node.domain, name=node.name)
        mixture.attribute.extend(attributes[name] for name in MOE_ATTRIBUTES if name in attributes)
        nodes.append(mixture)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _to_fp32(proto: ModelProto, config: Qwen3Config) -> None:
    """Cast stored fp16 initializers to fp32 where they are used, so that all values are fp32."""
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array

    graph = proto.graph
    for node in graph.node:
        if node.op_type == "Cast" and any(part.name == "to" and part.i == FLOAT16 for part in node.attribute):
            _set(node, "to", FLOAT)
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == FLOAT16:
            value.type.tensor_type.elem_type = FLOAT
    del graph.value_info[:]
    halves = [tensor.name for tensor in graph.initializer if tensor.data_type == FLOAT16]
    if not halves:
        return
    renamed = {name: f"{name}.fp32" for name in halves}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    length = next(tensor.dims[0] for tensor in graph.initializer if tensor.name == COS_CACHE)
    tables = rope_caches(config, length=length, float_type="F32")
    graph.initializer.extend(from_array(values, renamed[name]) for name, values in tables.items())
    casts: list[Any] = [
        make_node("Cast", [name], [new], to=FLOAT) for name, new in renamed.items() if name not in tables
    ]
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
