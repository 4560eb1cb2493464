"""Measure what errors of each weight's outputs do to the model's answers: the metric that GPTQ counts them with.

Gradients come from one pass back through the fp32 model (``calibration.sensitivity.backward``), on a part of the
calibration text. Of each weight Σ g gᵀ is kept, in spans of neighbouring rows: as correlations in float16, and a scale
for each row. All experts of a layer share the metric of their sum, which is where down_proj writes; their gate and up
see too few tokens for a metric of their own.

    gptq-1f0c…/layer-0003.outputs      of layer 3, as safetensors

Shapes: T tokens of one window, O out, S rows of one span
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from safetensors import safe_open
from torch import Tensor

from qwen3_export.calibration.sensitivity.backward import Passed, backward
from qwen3_export.files.atomic import partial_file, write_all
from qwen3_export.files.recognise import is_work_file
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.gptq.outputs import OutputMetric

__all__ = ["OutputFolder", "measure_outputs", "span_rows"]

MOST_ROWS, ROWS_TOGETHER = 1024, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFolder:
    """The metrics of a run, layer by layer, in its folder."""

    path: Path

    def metric(self, role: Role) -> OutputMetric | None:
        """The metric of a weight; None where its outputs count as independent."""
        name = _name(role)
        if name is None or role.layer is None:
            return None
        with safe_open(self.file(role.layer), framework="numpy") as file:
            if f"{name}.scale" not in file.keys():  # noqa: SIM118 (it is no mapping)
                return None
            scale_O, parts = file.get_tensor(f"{name}.scale"), file.get_tensor(f"{name}.correlation")
        spans = []
        for scale_S, part_SS in zip(np.split(scale_O, len(parts)), parts.astype(np.float32), strict=True):
            spans.append(torch.from_numpy(part_SS * scale_S[:, None] * scale_S))
        return OutputMetric(spans=tuple(spans))

    def file(self, layer: int) -> Path:
        return self.path / f"layer-{layer:04d}.outputs"


def measure_outputs(
    graph: Graph, windows: Sequence[Tensor], *, folder: Path, advance: Callable[[], None] = lambda: None
) -> OutputFolder:
    """The metrics of all layers, from windows of token ids, [T] each; layers that ``folder`` has are kept.

    ``advance`` is called twice for each layer.
    """
    found, layers = OutputFolder(path=folder), range(graph.config.num_hidden_layers)
    if all(found.file(layer).exists() for layer in layers):
        for _ in range(2 * len(layers)):
            advance()
        return found
    sums = _Sums(folder=found)

    def visit(role: Role, passed: Passed) -> None:
        if role.layer is not None:
            sums.add(role, passed, kv_heads=graph.config.num_key_value_heads, head_dim=graph.config.head_dim)

    backward(graph, windows, visit, folder=folder, advance=advance)
    sums.write()
    return found


def span_rows(rows: int) -> int:
    """Rows of a span: the most that divide the rows of a weight evenly, in whole tables of a palette where possible."""
    sizes = [size for size in range(min(rows, MOST_ROWS), 0, -1) if rows % size == 0]
    return next((size for size in sizes if size % ROWS_TOGETHER == 0), sizes[0])


@dataclass(slots=True, kw_only=True)
class _Sums:
    """The sums of one layer, [O / S, S, S] by name; they are written when the next layer begins."""

    folder: OutputFolder
    layer: int | None = None
    by_name: dict[str, Tensor] = field(default_factory=dict)

    def add(self, role: Role, passed: Passed, *, kv_heads: int, head_dim: int) -> None:
        assert role.layer is not None
        if role.layer != self.layer:
            self.write()
            self.layer = role.layer
        name = _name(role)
        if name is None or self.folder.file(role.layer).exists():
            return
        for gradient in passed.gradients:
            # A value goes to all query heads of its group, whose errors add up.
            of_values = passed.spread is not None
            gradient_TO = (
                gradient.reshape(len(gradient), kv_heads, -1, head_dim).sum(2).flatten(1) if of_values else gradient
            )
            size = span_rows(gradient_TO.shape[1])
            parts_NTS = gradient_TO.reshape(len(gradient_TO), -1, size).transpose(0, 1)
            if name not in self.by_name:
                self.by_name[name] = torch.zeros(len(parts_NTS), size, size)
            self.by_name[name].baddbmm_(parts_NTS.transpose(1, 2), parts_NTS)

    def write(self) -> None:
        """Write the layer that ends here."""
        if self.layer is not None and not self.folder.file(self.layer).exists():
            arrays = {}
            for name, sums_NSS in self.by_name.items():
                scale_NS = sums_NSS.diagonal(dim1=1, dim2=2).sqrt()
                inverse_NS = torch.where(scale_NS > 0, 1 / scale_NS, 0.0)
                arrays[f"{name}.scale"] = scale_NS.flatten().numpy()
                correlation_NSS = sums_NSS * inverse_NS[:, :, None] * inverse_NS[:, None]
                arrays[f"{name}.correlation"] = correlation_NSS.numpy().astype(np.float16)
            content = safetensors.numpy.save(arrays)
            path = self.folder.file(self.layer)
            with partial_file(path, num_bytes=len(content), overwrite=True, is_ours=is_work_file) as descriptor:
                write_all(descriptor, content)
        self.by_name = {}


def _name(role: Role) -> str | None:
    """What a metric is called in the file of its layer; None for weights without one."""
    if role.expert is not None and role.kind is not Kind.DOWN_PROJ:
        return None
    return role.kind.value
