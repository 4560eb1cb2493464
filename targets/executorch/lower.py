"""Lower the module to a .pte: ``torch.export``, XNNPACK, and the metadata that runners ask a program for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qwen3_export.targets.executorch.module import ExportModule

__all__ = ["lower"]

ConstantMethods = Mapping[str, Any]


def lower(module: ExportModule, path: Path, *, max_seq_len: int, constants: ConstantMethods) -> None:
    """Write the program: the method ``forward``, for up to ``max_seq_len`` tokens at once, and constant methods."""
    # These imports register the operators of attention and of quantized embeddings.
    import executorch.exir.passes._quant_patterns_and_replacements
    import executorch.extension.llm.custom_ops.custom_ops
    import executorch.kernels.quantized  # noqa: F401
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes import MemoryPlanningPass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    tokens = torch.export.Dim("tokens", min=1, max=max_seq_len)
    example = (torch.zeros(1, min(3, max_seq_len), dtype=torch.long), torch.tensor([0]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries about themselves
        exported = torch.export.export(module, example, dynamic_shapes=({1: tokens}, None), strict=False)
        edge = to_edge_transform_and_lower(
            exported,
            partitioner=[_partitioner()],
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=dict(constants),
        )
        del exported
        program = edge.to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        )
        with path.open("wb") as file:
            program.write_to_file(file)


def _partitioner() -> Any:
    """XNNPACK's partitioner, for programs whose only fused pattern is the linear layer.

    By default the backend walks every delegate through seventeen passes (convolutions, batch norms, image layouts).
    Each pass traces the delegate again, and together they took four fifths of the lowering time. With this compile
    spec, a delegate takes only the pass that a language model needs (``XnnpackBackend.preprocess``). The programs are
    equal except for the spec.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir.backend.compile_spec_schema import CompileSpec
    from executorch.exir.backend.partitioner import DelegationSpec

    partitioner = XnnpackPartitioner()
    partitioner.delegation_spec = DelegationSpec(
        partitioner.delegation_spec.backend_id, [CompileSpec("dqlinear_partitioner", b"")]
    )
    return partitioner
