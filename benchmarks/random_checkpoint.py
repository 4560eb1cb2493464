"""Write a Qwen3 checkpoint with a published model's true shapes and random weights, for speed and memory runs.

    python benchmarks/random_checkpoint.py 0.6b qwen3-0.6b-random [--layers N] [--tokenizer FOLDER]

Weights are heavy-tailed (a normal with a lognormal scale for each column), so that searches for block scales do real
work. The tokenizer is the demo's unless a folder with another is given; vocabulary rows beyond it are padding. Shards
hold about 2 GB, and only one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.checkpoint.hub import demo_folder
from qwen3_export.config import parse_config
from qwen3_export.graph import Role, expected_weights, module_name

# hidden, intermediate, layers, heads, KV heads, tied, (experts, active, expert width)
SHAPES: Mapping[str, tuple[Any, ...]] = {
    "0.6b": (1024, 3072, 28, 16, 8, True, None),
    "1.7b": (2048, 6144, 28, 16, 8, True, None),
    "4b": (2560, 9728, 36, 32, 8, True, None),
    "8b": (4096, 12288, 36, 32, 8, False, None),
    "14b": (5120, 17408, 40, 40, 8, False, None),
    "32b": (5120, 25600, 64, 64, 8, False, None),
    "30b-a3b": (2048, 6144, 48, 32, 4, False, (128, 8, 768)),
}
SHARD_BYTES = 2_000_000_000
DRAWN_VALUES = 1 << 20
BASE_CONFIG = {
    "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6, "rope_theta": 1_000_000, "rope_scaling": None, "torch_dtype": "bfloat16",
    "use_sliding_window": False, "vocab_size": 151936, "bos_token_id": 8156, "eos_token_id": 8158,
}  # fmt: skip


def build_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """The config.json of one of ``SHAPES``, cut to ``layers`` if given."""
    hidden, intermediate, num_layers, heads, kv_heads, tied, moe = SHAPES[name]
    config = {
        **BASE_CONFIG,
        "model_type": "qwen3_moe" if moe else "qwen3",
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers or num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
    }
    if moe:
        config |= {"num_experts": moe[0], "num_experts_per_tok": moe[1], "moe_intermediate_size": moe[2],
                   "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
    return config


def random_bf16(shape: tuple[int, ...], *, is_norm: bool, random: np.random.Generator) -> np.ndarray:
    """Random bf16 values as uint16. Rows of a large matrix repeat, which no export can exploit."""
    rows = shape[0] if len(shape) == 1 else min(shape[0], max(DRAWN_VALUES // shape[1], 1))
    values = random.standard_normal((rows, *shape[1:]), dtype=np.float32)
    if is_norm:
        values = 1.0 + 0.2 * values
    else:
        scale = np.exp(0.5 * random.standard_normal(shape[-1], dtype=np.float32)) * shape[-1] ** -0.5
        values *= scale
    drawn = (values.view(np.uint32) >> 16).astype(np.uint16)
    return np.resize(drawn, shape)


def shards(roles: Mapping[Role, tuple[int, ...]]) -> Iterator[dict[Role, tuple[int, ...]]]:
    part: dict[Role, tuple[int, ...]] = {}
    size = 0
    for role, shape in roles.items():
        num_bytes = 2 * int(np.prod(shape))
        if part and size + num_bytes > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[role] = shape
        size += num_bytes
    yield part


def write_shard(path: Path, part: Mapping[Role, tuple[int, ...]], random: np.random.Generator) -> None:
    header, offset = {}, 0
    for role, shape in part.items():
        end = offset + 2 * int(np.prod(shape))
        name = f"{module_name(role)}.weight"
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for role, shape in part.items():
            file.write(random_bf16(shape, is_norm=role.is_norm, random=random).tobytes())


def write_checkpoint(name: str, folder: Path, *, layers: int | None = None, tokenizer: Path | None = None) -> None:
    """Write config, tokenizer and weights of one of ``SHAPES``."""
    config = build_config(name, layers)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile((tokenizer or demo_folder()) / file, folder / file)
    random = np.random.default_rng(0)
    parts = list(shards(expected_weights(parse_config(config))))
    weight_map = {}
    for i, part in enumerate(parts, start=1):
        file = f"model-{i:05d}-of-{len(parts):05d}.safetensors"
        write_shard(folder / file, part, random)
        weight_map |= {f"{module_name(role)}.weight": file for role in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokenizer", type=Path)
    arguments = parser.parse_args()
    write_checkpoint(arguments.name, arguments.folder, layers=arguments.layers, tokenizer=arguments.tokenizer)
    print(arguments.folder)


if __name__ == "__main__":
    main()
