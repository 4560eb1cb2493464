"""Compare 8da4w with ExecuTorch's own ``export_llm`` on the same weights: time, memory, size, tokens a second.

    python benchmarks/random_checkpoint.py 0.6b random --tokenizer FOLDER
    python benchmarks/executorch_speed.py random --work FOLDER [--embedding 8|4] [--prompt 128] [--new 64] [--runs 5]

Both use groups of 32, the same embedding and the same longest sequence. ``export_llm`` uses its own recipe
(qwen3_xnnpack_q8da4w). Every step is a process of its own; CPU seconds, wall time and peak RSS are the kernel's. The
two take turns. ``export_llm`` first needs the weights in its own format; that step is listed separately.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RECIPE = "examples/models/qwen3/config/qwen3_xnnpack_q8da4w.yaml"


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        print(json.dumps(_measure(arguments.model, prompt=arguments.prompt, new=arguments.new)))
        return
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    programs = {"qwen3-export": _ours(arguments, work), "export_llm": _theirs(arguments, work)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
    for _ in range(arguments.runs):
        for name, program in programs.items():
            command = [sys.executable, __file__, str(program), "--one", "--work", str(work)]
            command += ["--prompt", str(arguments.prompt), "--new", str(arguments.new)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'program':14} {'MB':>8} {'load s':>7} {'prefill tokens/s':>17} {'decode tokens/s':>16}")
    for name, runs in found.items():
        load, prefill, decode = (statistics.median(run[key] for run in runs) for key in ("load", "prefill", "decode"))
        size = programs[name].stat().st_size / 1e6
        print(f"{name:14} {size:8.1f} {load:7.2f} {prefill:17.1f} {decode:16.1f}")


def _ours(arguments: argparse.Namespace, work: Path) -> Path:
    out = work / "ours"
    if arguments.reuse and out.exists():
        return out / "model.pte"
    command = [sys.executable, "-m", "qwen3_export.cli.main", "executorch", "--model", str(arguments.model)]
    command += ["--quant", "8da4w", "--group-size", "32", "--embedding", str(arguments.embedding)]
    command += ["--max-seq-len", str(arguments.max_seq_len), "--no-check", "--force", "--out", str(out)]
    _timed("qwen3-export", command, work)
    return out / "model.pte"


def _theirs(arguments: argparse.Namespace, work: Path) -> Path:
    import executorch
    import yaml

    config = json.loads((arguments.model / "config.json").read_text())
    params, weights, out = work / "params.json", work / "consolidated.pth", work / "theirs.pte"
    if arguments.reuse and out.exists():
        return out
    params.write_text(json.dumps(_params(config)))
    convert = [sys.executable, "-m", "executorch.examples.models.qwen3.convert_weights"]
    _timed("convert_weights", [*convert, str(arguments.model), str(weights)], work)
    recipe = yaml.safe_load((Path(next(iter(executorch.__path__))) / RECIPE).read_text())
    rows = 0 if arguments.embedding == 8 else 32
    recipe["base"] |= {
        "model_class": f"qwen3_{arguments.model_class}",
        "checkpoint": str(weights),
        "params": str(params),
    }
    recipe["quantization"] |= {"embedding_quantize": f"{arguments.embedding},{rows}", "group_size": 32}
    recipe["export"] |= {"max_seq_length": arguments.max_seq_len, "max_context_length": arguments.max_seq_len}
    recipe["export"] |= {"output_name": str(out)}
    (work / "export_llm.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "executorch.extension.llm.export.export_llm"]
    command += ["--config", str(work / "export_llm.yaml")]
    _timed("export_llm", command, work)
    return out


def _params(config: dict[str, object]) -> dict[str, object]:
    """Rename the fields of ``config.json`` to ExecuTorch's names."""
    names = {
        "dim": "hidden_size",
        "hidden_dim": "intermediate_size",
        "n_heads": "num_attention_heads",
        "n_kv_heads": "num_key_value_heads",
        "n_layers": "num_hidden_layers",
        "head_dim": "head_dim",
        "vocab_size": "vocab_size",
        "norm_eps": "rms_norm_eps",
        "rope_theta": "rope_theta",
    }
    flags = {"use_qk_norm": True, "qk_norm_before_rope": True, "use_hf_rope": True, "use_scaled_rope": False}
    return {theirs: config[ours] for theirs, ours in names.items()} | flags | {"attention_qkv_bias": False}


def _timed(name: str, command: Sequence[str], work: Path) -> None:
    """Run a process and print its resources; its output goes to a file."""
    log, started = work / f"{name}.log", time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=work)
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{name} failed; see {log}")
    cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6
    print(f"{name:16} {wall:7.1f} s wall {cpu:7.1f} s CPU {peak:6.2f} GB peak", flush=True)


def _measure(program: Path, *, prompt: int, new: int) -> dict[str, float]:
    from qwen3_export.targets.executorch.run import Program

    started = time.perf_counter()
    model = Program(program)
    loaded = time.perf_counter() - started
    for length in (8, prompt):  # the first is a warm-up
        started = time.perf_counter()
        model.last_logits([100 + i % 1000 for i in range(length)])
        prefilled = time.perf_counter()
        for i in range(new):
            model.last_logits([100 + i], start=length + i)
        decoded = time.perf_counter()
    return {"load": loaded, "prefill": length / (prefilled - started), "decode": new / (decoded - prefilled)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="A checkpoint folder.")
    parser.add_argument("--work", type=Path, required=True, help="A folder for programs and logs.")
    parser.add_argument("--model-class", default="0_6b", help="What export_llm calls the shapes: 0_6b, 1_7b, 4b.")
    parser.add_argument("--embedding", type=int, default=8, choices=(4, 8))
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--reuse", action="store_true", help="Programs that are there are not made again.")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.model, arguments.work = arguments.model.resolve(), arguments.work.resolve()
    return arguments


if __name__ == "__main__":
    main()
