"""Make a model with strong QK-Norm weights from another, to measure what the demo's mild ones cannot show.

    python benchmarks/strong_norms.py FOLDER [--model demo] [--text calibration.txt] [--steps 400]

The weights of q_norm and k_norm are multiplied channel by channel with exp(N(0, 1)), which breaks the model. Then
everything else is trained, in fp32, until it gives the original's distribution again (KL divergence on windows of 256
tokens of the text). This takes some minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.hub import demo_folder
from qwen3_export.checkpoint.model import load

WINDOW, BATCH, LEARNING_RATE = 256, 4, 1e-3


def main() -> None:
    arguments = _arguments()
    source = demo_folder() if arguments.model == "demo" else Path(arguments.model)
    tokenizer = load(str(source)).tokenizer
    windows = read_calibration(arguments.text, tokenizer, num_samples=10_000, sequence_length=WINDOW).windows
    tokens_WT = torch.stack([torch.from_numpy(window_T) for window_T in windows if len(window_T) == WINDOW])
    teacher = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    student = Qwen3ForCausalLM.from_pretrained(source, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    trained = []
    for name, values in student.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            values.data *= torch.randn(values.shape, generator=generator).exp()
            values.requires_grad_(False)
        else:
            trained.append(values)
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=arguments.steps)
    for step in range(arguments.steps):
        chosen = torch.randint(len(tokens_WT), (BATCH,), generator=generator)
        with torch.no_grad():
            expected = torch.log_softmax(teacher(tokens_WT[chosen]).logits, dim=-1)
        found = torch.log_softmax(student(tokens_WT[chosen]).logits, dim=-1)
        loss = functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == arguments.steps - 1:
            print(f"step {step}: KL divergence {loss.item():.3f}", flush=True)
    student.to(torch.bfloat16).save_pretrained(arguments.folder)
    for path in source.iterdir():
        if not (arguments.folder / path.name).exists() and path.suffix != ".safetensors":
            (arguments.folder / path.name).write_bytes(path.read_bytes())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    return parser.parse_args()


if __name__ == "__main__":
    main()
