"""What the benchmarks that make models have in common: training one to give another's distribution, in fp32.

The loss is the KL divergence on windows of a text, under AdamW with a rate that rises and falls (OneCycleLR).

Shapes: W windows, T tokens
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.hub import demo_folder
from qwen3_export.checkpoint.model import load

WINDOW, BATCH, LEARNING_RATE = 256, 4, 1e-3

# What the loss has besides: a number to add, and what is printed of it, from the student's output.
Beside = Callable[[Any], tuple[Tensor, str]]


def read_arguments(description: str | None, *, steps: int) -> argparse.Namespace:
    """The command line of such a benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()


def source_folder(model: str) -> Path:
    """The folder of the model that is to be given again."""
    return demo_folder() if model == "demo" else Path(model)


def read_windows(source: Path, text: Path | None) -> Tensor:
    """All whole windows of the text (None: the package's sample), [W, T]."""
    tokenizer = load(str(source)).tokenizer
    windows = read_calibration(text, tokenizer, num_samples=10_000, sequence_length=WINDOW).windows
    return torch.stack([torch.from_numpy(window_T) for window_T in windows if len(window_T) == WINDOW])


def distil(
    student: nn.Module,
    teacher: nn.Module,
    trained: Sequence[nn.Parameter],
    tokens_WT: Tensor,
    *,
    steps: int,
    generator: torch.Generator,
    beside: Beside | None = None,
    **forward: Any,
) -> None:
    """Train these parameters of the student, in place; ``forward`` are arguments of its forward pass."""
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(tokens_WT), (BATCH,), generator=generator)
        with torch.no_grad():
            expected = torch.log_softmax(teacher(tokens_WT[chosen]).logits, dim=-1)
        out = student(tokens_WT[chosen], **forward)
        found = torch.log_softmax(out.logits, dim=-1)
        loss = functional.kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean()
        added, told = (0.0, "") if beside is None else beside(out)
        optimizer.zero_grad()
        (loss + added).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: KL divergence {loss.item():.3f}{told}", flush=True)


def save(student: Any, source: Path, folder: Path) -> None:
    """Write the student as bf16, with the documents of the model that it was made from."""
    student.to(torch.bfloat16).save_pretrained(folder)
    for path in source.iterdir():
        if not (folder / path.name).exists() and path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
