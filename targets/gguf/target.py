"""What GGUF is as a target: its name, its consumers, its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen3_export.targets.options import AllocatingOptions, option
from qwen3_export.targets.target import Target

__all__ = ["GGUF", "GgufOptions", "starts_as_gguf"]

MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufOptions(AllocatingOptions):
    """Options of a GGUF export."""

    imatrix: Path | None = option(None, help="An importance matrix of llama.cpp (.gguf or .dat).")
    tensor_type: tuple[str, ...] = option(
        (),
        help="Another format for some tensors, such as attn_v=q6_k or blk.3.ffn_down=q5_k; repeatable.",
        metavar="ROLE=FORMAT",
    )
    output_type: str | None = option(None, help="Format of the output head.", metavar="FORMAT")
    embedding_type: str | None = option(None, help="Format of the token embedding.", metavar="FORMAT")
    split_max_size: str | None = option(None, help="Split into files of at most this size, such as 2G.", metavar="SIZE")
    balance_keys: bool = option(
        False, help="Move scales between q_norm and k_norm, exactly, so that a quantized cache of keys loses less."
    )
    modelfile: bool = option(False, help="Write a Modelfile for Ollama beside the file.")

    @property
    def needs_text(self) -> bool:
        """Keys and formats are measured on the calibration text, whatever the method."""
        return self.balance_keys or self.chooses_formats


def owns(path: Path) -> bool:
    """Whether a path is a GGUF file: by its name, or by its first bytes."""
    if path.suffix == ".gguf":
        return not path.is_dir()
    return starts_as_gguf(path)


def starts_as_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


GGUF = Target(
    name="gguf",
    title="GGUF",
    summary="Write a GGUF file for llama.cpp, Ollama and LM Studio, and check it against the checkpoint.",
    extra="llama",
    consumers=("llama.cpp", "Ollama", "LM Studio"),
    default_recipe="q4_k_m",
    options=GgufOptions,
    package="qwen3_export.targets.gguf",
    owns=owns,
    suffixes=(".gguf",),
    examples=(
        "--model demo --quant q4_k_m",
        "--model demo --quant q4_k_m --method gptq",
        "--model demo --quant q4_k_m --method gptq --allocate    (the best file in that recipe's size)",
        "--model Qwen3-4B --method gptq --size 2.3G",
        "--model Qwen3-1.7B --quant q4_k_m --imatrix imatrix.gguf",
        "--model Qwen3-1.7B --quant q4_k_m --balance-keys    (for llama.cpp's -ctk q8_0 and q4_0)",
        "--model ./my-finetune --quant q5_k_m --tensor-type attn_v=q8_0 --out app/model.gguf",
    ),
)
