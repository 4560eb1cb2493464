"""What ExecuTorch is as a target: its name, its consumers, its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3_export.targets.options import AllocatingOptions, option, require_choice
from qwen3_export.targets.target import Target

__all__ = ["EMBEDDING_BITS", "EXECUTORCH", "GROUP_SIZES", "ExecutorchOptions"]

GROUP_SIZES = (32, 64, 128, 256)
EMBEDDING_BITS = (4, 8, 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorchOptions(AllocatingOptions):
    """Options of an ExecuTorch export."""

    group_size: int = option(32, help="Columns of int4 weights that share a scale: 32, 64, 128 or 256.")
    embedding: int | None = option(None, help="Bits of the embedding: 4, 8 or 32; the recipe's by default.")
    context_length: int | None = option(
        None,
        help="Positions that the KV cache holds; as many as one call takes by default.",
        hidden=("--max-context-len",),
    )
    max_seq_len: int | None = option(None, help="Tokens that one call takes at most; 2048 by default.")
    portable: bool = option(
        False, help="Use only operators that every runtime has: slower, and runs without the llama operators."
    )

    def __post_init__(self) -> None:
        AllocatingOptions.__post_init__(self)
        require_choice("group_size", self.group_size, GROUP_SIZES)
        if self.embedding is not None:
            require_choice("embedding", self.embedding, EMBEDDING_BITS)


def owns(path: Path) -> bool:
    """Whether a path is an ExecuTorch program, or a folder with one."""
    return any(path.glob("*.pte")) if path.is_dir() else path.suffix == ".pte" and path.exists()


EXECUTORCH = Target(
    name="executorch",
    title="ExecuTorch",
    summary="Write a folder with a .pte for ExecuTorch's LLM runners, and check it against the checkpoint.",
    extra="executorch",
    consumers=("ExecuTorch's LLM runners",),
    default_recipe="8da4w",
    options=ExecutorchOptions,
    package="qwen3_export.targets.executorch",
    owns=owns,
    suffixes=(".pte",),
    examples=(
        "--model demo --quant 8da4w",
        "--model Qwen3-0.6B --quant 8da4w --method gptq --max-seq-len 1024",
        "--model demo --quant 8da4w --method gptq --allocate    (the best program in that recipe's size)",
        "--model Qwen3-1.7B --quant 8da4w --group-size 128 --embedding 4",
        "--model Qwen3-0.6B --quant 8da8w --portable --max-seq-len 512",
    ),
)
