"""Make a small trained mixture of experts from a dense model, for measurements that random weights cannot give.

    python benchmarks/small_mixture.py FOLDER [--model demo] [--text calibration.txt] [--steps 300]

Every layer gets 8 experts, 2 of them active. Each begins as a copy of the dense MLP with noise of its own, as large as
the weights (with less the copies work without training, and remain alike). It keeps its full width: half of the demo's,
384, is no multiple of 256, the length that GGUF's number formats need. Then everything is trained, in fp32, until it
gives the dense model's distribution again (KL divergence on windows of 256 tokens of the text), with a small loss for
balance so that every expert is used. This takes some minutes. Printed at the end is how many tokens of the text each
expert gets.

Shapes: W windows, T tokens, P tokens of a batch, E experts, L layers
"""

from __future__ import annotations

import json
from typing import Any

import torch
from distilling import distil, read_arguments, read_windows, save, source_folder
from torch import Tensor
from transformers import GenerationConfig, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

EXPERTS, ACTIVE, NOISE, BALANCE = 8, 2, 1.0, 0.01
MIXTURE = {
    "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": EXPERTS,
    "num_experts_per_tok": ACTIVE, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
}  # fmt: skip


def main() -> None:
    arguments = read_arguments(__doc__, steps=300)
    source = source_folder(arguments.model)
    tokens_WT = read_windows(source, arguments.text)
    generator = torch.Generator().manual_seed(0)
    teacher = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    student = mixture_of(teacher, json.loads((source / "config.json").read_text()), generator)
    distil(
        student,
        teacher,
        list(student.parameters()),
        tokens_WT,
        steps=arguments.steps,
        generator=generator,
        beside=_balance,
        output_router_logits=True,
    )
    student.generation_config = GenerationConfig.from_pretrained(source)
    save(student, source, arguments.folder)
    for layer, counts_E in enumerate(tokens_by_expert(student, tokens_WT).tolist()):
        print(f"layer {layer}: {' '.join(map(str, counts_E))} tokens by expert, of {tokens_WT.numel()}")


def mixture_of(dense: Qwen3ForCausalLM, document: dict[str, object], generator: torch.Generator) -> Qwen3MoeForCausalLM:
    """A mixture whose experts are noisy copies of the dense model's MLPs; ``document`` is the dense config.json."""
    config = Qwen3MoeConfig(**document | MIXTURE | {"moe_intermediate_size": document["intermediate_size"]})
    mixture = Qwen3MoeForCausalLM(config).to(torch.float32)
    mixture.load_state_dict(dense.state_dict(), strict=False)
    for layer, from_layer in zip(mixture.model.layers, dense.model.layers, strict=True):
        experts, mlp = layer.mlp.experts, from_layer.mlp
        gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        experts.gate_up_proj.data = _noisy_copies(gate_up.detach(), generator)
        experts.down_proj.data = _noisy_copies(mlp.down_proj.weight.detach(), generator)
        router = layer.mlp.gate.weight
        router.data = config.initializer_range * torch.randn(router.shape, generator=generator)
    return mixture


@torch.no_grad()
def tokens_by_expert(mixture: Qwen3MoeForCausalLM, tokens_WT: Tensor) -> Tensor:
    """How many tokens each expert of each layer gets, [L, E]."""
    counts_LE = torch.zeros(len(mixture.model.layers), EXPERTS, dtype=torch.int64)
    for tokens_T in tokens_WT:
        logits = mixture(tokens_T[None], output_router_logits=True).router_logits
        counts_LE += torch.stack([_chosen(logits_PE).sum(dim=0) for logits_PE in logits])
    return counts_LE


def _noisy_copies(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn((EXPERTS, *weight.shape), generator=generator)
    return weight + NOISE * weight.std() * noise


def _balance(out: Any) -> tuple[Tensor, str]:
    """What uneven use of experts adds to the loss."""
    imbalance = torch.stack([_imbalance(logits_PE) for logits_PE in out.router_logits]).mean()
    return BALANCE * imbalance, f", imbalance {imbalance.item():.2f}"


def _imbalance(logits_PE: Tensor) -> Tensor:
    """1 where experts get equally many tokens, and more otherwise (the Switch Transformer's loss, arXiv 2101.03961)."""
    share_E = _chosen(logits_PE).float().mean(dim=0) / ACTIVE
    return EXPERTS * (share_E * torch.softmax(logits_PE, dim=-1).mean(dim=0)).sum()


def _chosen(logits_PE: Tensor) -> Tensor:
    """1 for the experts that a token is sent to, 0 for others."""
    return torch.zeros_like(logits_PE, dtype=torch.int64).scatter(1, logits_PE.topk(ACTIVE).indices, 1)


if __name__ == "__main__":
    main()
