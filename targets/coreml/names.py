"""Names and tables shared by the code that writes Core ML packages and the code that reads them.

Inputs, states and output have the names that swift-transformers looks for (its Sources/Models/LanguageModel.swift). A
value of the program has the Hugging Face name of its module, with underscores instead of dots, because MIL does not
allow dots. This file does not need coremltools.
"""

from __future__ import annotations

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.reference.probe import Site
from qwen3_export.rope import rotation

__all__ = [
    "ATTENTION_MASK",
    "COS_TABLE",
    "FULL_MASK",
    "HEAD_PART",
    "INPUT_IDS",
    "KEY_CACHE",
    "LOGITS",
    "MODEL_FILE",
    "PACKAGE",
    "POSITIONS",
    "ROOT_EPS",
    "SIN_TABLE",
    "VALUE_CACHE",
    "WEIGHT_FILE",
    "mil_name",
    "rope_tables",
    "site_name",
]

PACKAGE = "model.mlpackage"
MODEL_FILE, WEIGHT_FILE = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"

INPUT_IDS, KEY_CACHE, VALUE_CACHE, LOGITS = "inputIds", "keyCache", "valueCache", "logits"

# The two forms of the mask; a package has one of them.
ATTENTION_MASK, FULL_MASK = "attentionMask", "fullAttentionMask"

COS_TABLE, SIN_TABLE = "cos_table", "sin_table"

# The numbers of the positions, which the causal mask is built from.
POSITIONS = "positions"

# The name of a part of a split output head, before its index.
HEAD_PART = "lm_head_part_"

# The square root of rms_norm_eps, which the program stores instead of eps.
ROOT_EPS = "root_eps"


def mil_name(name: str) -> str:
    """A module's name as the name of a program value."""
    return name.replace(".", "_")


def site_name(site: Site) -> str:
    """The program value that corresponds to a site of the reference."""
    return f"model_{site.place.value}" if site.layer is None else f"model_layers_{site.layer}_{site.place.value}"


def rope_tables(config: Qwen3Config, *, length: int) -> dict[str, np.ndarray]:
    """Cosine and sine of every position and pair, [length, head_dim / 2], fp32."""
    turn = rotation(config, start=0, count=length)
    return {COS_TABLE: turn.cos.numpy(), SIN_TABLE: turn.sin.numpy()}
