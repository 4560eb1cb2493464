"""Convert a Qwen3 checkpoint to an int4 .mlpackage with coremltools alone, in the shortest form that converts.

    python benchmarks/coreml_usual_route.py FOLDER OUT [--threads 2] [--layers N]

This is what one would write without an exporter: Qwen3 as a small torch module with its states as buffers,
``torch.jit.trace``, ``coremltools.convert``, and ``coremltools.optimize`` to int4 in blocks of 32. (The module of
transformers 5 does not convert, neither traced nor exported.) ``coreml_export.py`` compares it with ours.
"""

# T tokens  S positions seen  N heads  K kv heads  H head_dim  C positions of a state

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional

CONTEXT, BLOCK = 2048, 32
STATES = ("keyCache", "valueCache")

Weights = Mapping[str, Tensor]


class Norm(nn.Module):
    """RMSNorm in its usual form."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight, requires_grad=False), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    """One layer; the caches hold all layers."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, index: int) -> None:
        super().__init__()
        self.config, self.index = config, index
        prefix, eps = f"model.layers.{index}", config["rms_norm_eps"]
        for name in ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"):
            setattr(self, name.rpartition(".")[2], Norm(weights[f"{prefix}.{name}.weight"], eps))
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            setattr(self, name.rpartition(".")[2], linear(weights[f"{prefix}.{name}.weight"]))
        for name in ("gate_proj", "up_proj", "down_proj"):
            setattr(self, name, linear(weights[f"{prefix}.mlp.{name}.weight"]))

    def forward(self, x: Tensor, mask: Tensor, turn: tuple[Tensor, Tensor], caches: tuple[Tensor, Tensor]) -> Tensor:
        heads, kv_heads = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        head_dim, tokens, seen = self.config["head_dim"], mask.shape[2], mask.shape[3]
        h = self.input_layernorm(x)
        q = self.q_norm(self.q_proj(h).view(1, tokens, heads, head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(h).view(1, tokens, kv_heads, head_dim)).transpose(1, 2)
        v = self.v_proj(h).view(1, tokens, kv_heads, head_dim).transpose(1, 2)
        for cache, new in zip(caches, (rotated(k, *turn), v), strict=True):
            cache[self.index, :, :, seen - tokens : seen, :] = new
        k_seen, v_seen = (
            cache[self.index, :, :, :seen, :].repeat_interleave(heads // kv_heads, dim=1) for cache in caches
        )
        context = functional.scaled_dot_product_attention(rotated(q, *turn), k_seen, v_seen, attn_mask=mask)
        x = x + self.o_proj(context.transpose(1, 2).reshape(1, tokens, heads * head_dim))
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))


class Qwen3(nn.Module):
    """The whole model: token ids and an additive mask to logits, with the caches in buffers."""

    def __init__(self, config: Mapping[str, Any], weights: Weights) -> None:
        super().__init__()
        layers, head_dim = config["num_hidden_layers"], config["head_dim"]
        embedding = weights["model.embed_tokens.weight"]
        self.embed = nn.Embedding.from_pretrained(embedding)
        self.layers = nn.ModuleList(Layer(config, weights, index) for index in range(layers))
        self.norm = Norm(weights["model.norm.weight"], config["rms_norm_eps"])
        self.head = linear(embedding if config["tie_word_embeddings"] else weights["lm_head.weight"])
        pairs = torch.arange(0, head_dim, 2).float() / head_dim
        angles = torch.outer(torch.arange(CONTEXT).float(), config["rope_theta"] ** -pairs).repeat(1, 2)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for name in STATES:
            shape = (layers, 1, config["num_key_value_heads"], CONTEXT, head_dim)
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        tokens, seen = mask.shape[2], mask.shape[3]
        turn = (self.cos[seen - tokens : seen], self.sin[seen - tokens : seen])
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, mask, turn, (self.keyCache, self.valueCache))
        return self.head(self.norm(x))


def linear(weight: Tensor) -> nn.Linear:
    found = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    return found


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def read_module(folder: Path, layers: int | None) -> Qwen3:
    """Read the model in fp32, as coremltools wants it."""
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] = layers or config["num_hidden_layers"]
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = file.keys()
            weights |= {name: file.get_tensor(name).float() for name in names}
    return Qwen3(config, weights).eval()


def convert(module: Qwen3) -> Any:
    """Trace the module, and convert it to an fp16 model of Core ML."""
    with torch.inference_mode():
        example = torch.zeros((1, 4), dtype=torch.int32), torch.zeros((1, 1, 4, 8))
        traced = torch.jit.trace(module, example, check_trace=False)
    rows, columns = (ct.RangeDim(lower_bound=1, upper_bound=CONTEXT, default=1) for _ in range(2))
    shapes = {name: tuple(getattr(module, name).shape) for name in STATES}
    return ct.convert(
        traced,
        inputs=[
            ct.TensorType(shape=(1, rows), dtype=np.int32, name="inputIds"),
            ct.TensorType(shape=(1, 1, rows, columns), dtype=np.float16, name="fullAttentionMask"),
        ],
        outputs=[ct.TensorType(dtype=np.float16, name="logits")],
        states=[
            ct.StateType(wrapped_type=ct.TensorType(shape=shape, dtype=np.float16), name=name)
            for name, shape in shapes.items()
        ],
        minimum_deployment_target=ct.target.iOS18,
        skip_model_load=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    converted = convert(read_module(arguments.model, arguments.layers))
    config = cto.OptimizationConfig(
        global_config=cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=BLOCK
        )
    )
    quantized = cto.linear_quantize_weights(converted, config=config)
    arguments.out.mkdir()
    quantized.save(str(arguments.out / "model.mlpackage"))


if __name__ == "__main__":
    main()
