"""What ONNX is as a target: its name, its consumers, its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen3_export.errors import OptionError
from qwen3_export.targets.options import AllocatingOptions, option, require_choice
from qwen3_export.targets.target import Target

__all__ = ["GROUP_SIZES", "INT8_ACTIVATIONS", "ONNX", "Flavour", "OnnxOptions"]

Flavour = Literal["genai", "transformers.js"]

GROUP_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
# The level at which CPUs round activations to int8.
INT8_ACTIVATIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions(AllocatingOptions):
    """Options of an ONNX export."""

    flavour: Flavour = option("genai", help="For onnxruntime-genai and plain onnxruntime, or for transformers.js.")
    group_size: int = option(32, help="Columns that share a scale: 16, 32, 64, 128 or 256.", hidden=("--block-size",))
    asymmetric: bool = option(False, help="Give each group a zero point: a little larger and more accurate.")
    context_length: int | None = option(
        None,
        help="Tokens that a prompt and its answer take together at most; 4096 by default. onnxruntime-genai allocates "
        "its KV cache for so many.",
    )
    accuracy_level: int = option(
        INT8_ACTIVATIONS, help="4 lets CPUs round activations to int8, which is fast; 1 keeps fp32."
    )

    def __post_init__(self) -> None:
        AllocatingOptions.__post_init__(self)
        require_choice("flavour", self.flavour, Flavour)
        require_choice("group_size", self.group_size, GROUP_SIZES)
        require_choice("accuracy_level", self.accuracy_level, ACCURACY_LEVELS)
        if self.context_length is not None and self.context_length < 1:
            raise OptionError(f"`context_length` {self.context_length}: must be at least 1")


def owns(path: Path) -> bool:
    """Whether a path is an ONNX graph, or a folder with one."""
    if path.is_dir():
        return any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx"))
    return path.suffix == ".onnx" and path.exists()


ONNX = Target(
    name="onnx",
    title="ONNX",
    summary="Write a folder that onnxruntime-genai or transformers.js runs, and check it against the checkpoint.",
    extra="onnx",
    consumers=("onnxruntime-genai", "transformers.js"),
    default_recipe="int4",
    options=OnnxOptions,
    package="qwen3_export.targets.onnx",
    owns=owns,
    suffixes=(".onnx",),
    examples=(
        "--model demo --quant int4",
        "--model demo --quant int4 --method gptq --group-size 64",
        "--model demo --quant int4 --method gptq --allocate    (the best graph in that recipe's size)",
        "--model Qwen3-0.6B --quant q4f16 --flavour transformers.js --out web/Qwen3-0.6B",
    ),
)
