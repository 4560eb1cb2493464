"""Run llm-compressor on the same model and the same tokens, for ``integer_formats.py --weights``.

It runs in a separate environment (``pip install llmcompressor``), which does not need qwen3-export:

    python benchmarks/peers_llm_compressor.py MODEL_FOLDER --windows TOKENS.json --scheme gptq_g128 --out FOLDER

TOKENS is a list of lists of token ids; ``integer_formats.py --write-tokens`` writes the ones that it uses itself. The
result is a checkpoint of dequantized weights, with the seconds and the peak memory of quantizing in ``took.json``.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM

BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def groups(size: int, *, symmetric: bool = True) -> dict[str, Any]:
    """Four bits in groups of columns."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": size, "symmetric": symmetric}
    return {"group_0": {"targets": ["Linear"], "weights": weights}}


SCHEMES = {
    "rtn_g128": lambda: [QuantizationModifier(config_groups=groups(128), ignore=["lm_head"])],
    "gptq_g128": lambda: [GPTQModifier(config_groups=groups(128), ignore=["lm_head"])],
    "gptq_g32": lambda: [GPTQModifier(config_groups=groups(32), ignore=["lm_head"])],
    "awq_g128": lambda: [
        AWQModifier(),
        QuantizationModifier(config_groups=groups(128, symmetric=False), ignore=["lm_head"]),
    ],
    "w8a8": lambda: [
        SmoothQuantModifier(smoothing_strength=0.5),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--scheme", choices=SCHEMES, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    windows = json.loads(arguments.windows.read_text(encoding="utf-8"))
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(ids) for ids in windows]})
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    oneshot(
        model=model,
        dataset=data,
        recipe=SCHEMES[arguments.scheme](),
        max_seq_length=max(map(len, windows)),
        num_calibration_samples=len(windows),
    )
    used = resource.getrusage(resource.RUSAGE_SELF)
    took = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime,
        "peak_memory_bytes": used.ru_maxrss * 1024,
    }
    _save(model, arguments.model, arguments.out)
    (arguments.out / "took.json").write_text(json.dumps(took), encoding="utf-8")


def _save(model: torch.nn.Module, source: Path, out: Path) -> None:
    """Save the weights as the model computes with them, dequantized from each module's scales and zero points."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from safetensors.torch import save_file

    tensors = {}
    for name, module in model.named_modules():
        for part, value in module.named_parameters(recurse=False):
            if part not in ("weight",):
                continue
            scheme = getattr(module, "quantization_scheme", None)
            values = value.data
            if scheme is not None and scheme.weights is not None:
                zero = getattr(module, "weight_zero_point", None)
                values = fake_quantize(values, module.weight_scale, zero, scheme.weights)
            tensors[f"{name}.{part}"] = values.float().contiguous().clone()
    tensors.pop("lm_head.weight", None)  # tied
    out.mkdir(parents=True, exist_ok=True)
    for file in BESIDE:
        if (source / file).exists():
            shutil.copy(source / file, out / file)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
