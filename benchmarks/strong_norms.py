"""Make a model with strong QK-Norm weights from another, to measure what the demo's mild ones cannot show.

    python benchmarks/strong_norms.py FOLDER [--model demo] [--text calibration.txt] [--steps 400]

The weights of q_norm and k_norm are multiplied channel by channel with exp(N(0, 1)), which breaks the model. Then
everything else is trained, in fp32, until it gives the original's distribution again (KL divergence on windows of 256
tokens of the text). This takes some minutes.
"""

from __future__ import annotations

import torch
from distilling import distil, read_arguments, read_windows, save, source_folder
from transformers import Qwen3ForCausalLM


def main() -> None:
    arguments = read_arguments(__doc__, steps=400)
    source = source_folder(arguments.model)
    tokens_WT = read_windows(source, arguments.text)
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
    distil(student, teacher, trained, tokens_WT, steps=arguments.steps, generator=generator)
    save(student, source, arguments.folder)


if __name__ == "__main__":
    main()
