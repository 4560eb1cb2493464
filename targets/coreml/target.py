"""What Core ML is as a target: its name, its consumers, its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_export.targets.options import AllocatingOptions, option, require_choice
from qwen3_export.targets.target import Target

__all__ = ["COREML", "GROUP_SIZES", "CoremlOptions", "MaskInput", "System"]

System = Literal["iOS18", "macOS15"]
MaskInput = Literal["attentionMask", "fullAttentionMask"]

GROUP_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlOptions(AllocatingOptions):
    """Options of a Core ML export."""

    group_size: int = option(
        32, help="Columns of int4 weights that share a scale: 16, 32, 64, 128 or 256.", hidden=("--block-size",)
    )
    channelwise: bool = option(False, help="One scale a row for int4: the form for the Neural Engine.")
    context_length: int | None = option(
        None, help="Positions that the package takes; 2048 by default, or the model's if it has fewer."
    )
    split_lm_head: int | None = option(None, help="Multiply with the head in parts of so many rows, for phones.")
    fused_attention: bool = option(False, help="Use Core ML's own operator for attention, for GPUs.")
    mask: MaskInput = option(
        "attentionMask",
        help="The mask that the package takes: attentionMask, as every release of swift-transformers fills it, or "
        "fullAttentionMask, where the app gives the causal mask.",
    )
    target: System = option("iOS18", help="The oldest system that shall run the package.")

    def __post_init__(self) -> None:
        AllocatingOptions.__post_init__(self)
        require_choice("group_size", self.group_size, GROUP_SIZES)
        require_choice("mask", self.mask, MaskInput)
        require_choice("target", self.target, System)


def owns(path: Path) -> bool:
    """Whether a path is a Core ML package, or a folder with one."""
    return path.is_dir() and (path.suffix == ".mlpackage" or any(path.glob("*.mlpackage")))


COREML = Target(
    name="coreml",
    title="Core ML",
    summary="Write a folder with an .mlpackage for Core ML, and check it against the checkpoint on any machine.",
    extra="coreml",
    consumers=("swift-transformers",),
    default_recipe="int4",
    options=CoremlOptions,
    package="qwen3_export.targets.coreml",
    owns=owns,
    suffixes=(".mlpackage",),
    examples=(
        "--model demo --quant int4",
        "--model Qwen3-0.6B --quant palette4 --method gptq --context-length 1024",
        "--model Qwen3-0.6B --quant palette4 --method gptq --allocate    (the best package in that recipe's size)",
        "--model Qwen3-1.7B --quant int4 --channelwise --split-lm-head 16384",
    ),
)
