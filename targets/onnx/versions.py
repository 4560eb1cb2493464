"""The oldest releases that run a graph: one table, which lint, exports, ``quants`` and docs/onnx.md repeat.

onnxruntime was tried in every minor release from 1.20 to 1.32. transformers.js was tried as npm installs 3.8.1, 4.0.0
and 4.3.2, in Node and in headless Chromium on WebAssembly; each brings an onnxruntime of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

__all__ = ["NEEDS", "OLDEST", "Need", "find_needs", "needed_sentences", "oldest_javascript", "oldest_runtime"]

OLDEST, OLDEST_JAVASCRIPT, NEWEST_JAVASCRIPT = "1.23", "3.8", "4.3"
# Inputs of QMoE that hold zero points, and the bits of codes that not every MatMulNBits multiplies.
ZERO_POINTS = (11, 12, 13)
TWO_BITS, EIGHT_BITS = 2, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a graph has, and the first releases that take it; ``transformers_js`` is None where none does.

    ``lacking`` says what older releases lack: those of onnxruntime if ``onnxruntime`` is newer than the oldest one,
    those of transformers.js otherwise.
    """

    graph: str
    onnxruntime: str
    transformers_js: str | None
    lacking: str
    applies: Callable[[GraphProto], bool]


def _nodes(graph: GraphProto, *op_types: str) -> Iterator[NodeProto]:
    return (node for node in graph.node if node.op_type in op_types)


def _number(node: NodeProto, name: str) -> int | None:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), None)


def _multiplies_bytes(graph: GraphProto) -> bool:
    return any(_number(node, "bits") == EIGHT_BITS for node in _nodes(graph, "MatMulNBits"))


def _multiplies_two_bits(graph: GraphProto) -> bool:
    return any(_number(node, "bits") == TWO_BITS for node in _nodes(graph, "MatMulNBits"))


def _has_mixture(graph: GraphProto) -> bool:
    return any(True for _ in _nodes(graph, "MoE", "QMoE"))


def _has_zero_points(graph: GraphProto) -> bool:
    return any(name for node in _nodes(graph, "QMoE") for i, name in enumerate(node.input) if i in ZERO_POINTS)


def _states_accuracy(graph: GraphProto) -> bool:
    return any(_number(node, "accuracy_level") is not None for node in _nodes(graph, "QMoE"))


# All that apply to a graph hold together.
NEEDS: tuple[Need, ...] = (
    Need(
        graph="dense models as fp32, fp16, int4 or int4_fp16",
        onnxruntime=OLDEST,
        transformers_js=OLDEST_JAVASCRIPT,
        lacking="",
        applies=lambda _: True,
    ),
    Need(
        graph="dense models as int8 or int4_int8, and most with `--allocate`",
        onnxruntime=OLDEST,
        transformers_js="4.0",
        lacking="MatMulNBits for 8 bits",
        applies=_multiplies_bytes,
    ),
    Need(
        graph="matrices of 2 bits, which `--allocate` may choose in the genai flavour",
        onnxruntime="1.24",
        transformers_js="4.0",
        lacking="MatMulNBits for 2 bits",
        applies=_multiplies_two_bits,
    ),
    Need(
        graph="mixtures of experts as fp32; with 4-bit experts in the transformers.js flavour",
        onnxruntime=OLDEST,
        transformers_js="4.0",
        lacking="the model type qwen3_moe",
        applies=_has_mixture,
    ),
    Need(
        graph="the latter with `--asymmetric`",
        onnxruntime="1.24",
        transformers_js="4.0",
        lacking="zero points in QMoE",
        applies=_has_zero_points,
    ),
    Need(
        graph="mixtures with 8-bit experts; with 4-bit experts in the genai flavour",
        onnxruntime="1.31",
        transformers_js=None,
        lacking="accuracy_level in QMoE",
        applies=_states_accuracy,
    ),
)


def find_needs(graph: GraphProto) -> tuple[Need, ...]:
    """The rows of the table that apply to a graph."""
    return tuple(need for need in NEEDS if need.applies(graph))


def oldest_runtime(needs: Sequence[Need]) -> str:
    """The first minor release of onnxruntime that loads the graph and computes it right."""
    return max((need.onnxruntime for need in needs), key=_order)


def oldest_javascript(needs: Sequence[Need]) -> str | None:
    """The first minor release of transformers.js that loads the graph, or None."""
    found = [need.transformers_js for need in needs]
    return None if None in found else max((release for release in found if release is not None), key=_order)


def needed_sentences(graph: GraphProto, *, is_for_browsers: bool) -> Iterator[tuple[str, bool]]:
    """What a user of the oldest releases should know of "this graph", and whether no release at all loads it."""
    needs = find_needs(graph)
    runtime, release = oldest_runtime(needs), oldest_javascript(needs)
    if runtime != OLDEST:
        lacking = [need.lacking for need in needs if need.onnxruntime == runtime]
        yield f"needs onnxruntime {runtime} or newer; older releases lack {' and '.join(lacking)}", False
    if not is_for_browsers or release == OLDEST_JAVASCRIPT:
        return
    lacking = [need.lacking for need in needs if need.transformers_js == release]
    if release is None:
        yield (
            (
                f"loads in no release of transformers.js up to {NEWEST_JAVASCRIPT}, whose onnxruntime lacks "
                f"{' and '.join(lacking)}; use int4, int4_int8 or fp32"
            ),
            True,
        )
    else:
        yield f"needs transformers.js {release} or newer; older releases lack {' and '.join(lacking)}", False


def _order(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))
