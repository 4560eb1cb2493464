"""On a Mac, confirm that Core ML computes the logits that an export recorded on another machine.

    pip install coremltools numpy
    python coreml_confirm.py FOLDER [--units cpu|gpu|ane|all]

FOLDER holds model.mlpackage and transcript.json, which qwen3-export writes beside it. The transcript has some tokens,
the chunks in which they are fed (a prompt, then single tokens through the states), and the five best logits of each
position with fp16 rounding. Exit code 3 means that Core ML chose other tokens, or that its logits differ by more than
fp16 explains.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import coremltools
import numpy as np

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ane": "CPU_AND_NE", "all": "ALL"}
# Logits of other fp16 kernels differ by up to this; of two tokens closer than this, either may come first.
TOLERANCE = 0.25


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", choices=UNITS, default="all")
    arguments = parser.parse_args()
    transcript = json.loads((arguments.folder / "transcript.json").read_text())
    units = getattr(coremltools.ComputeUnit, UNITS[arguments.units])
    model = coremltools.models.MLModel(str(arguments.folder / "model.mlpackage"), compute_units=units)
    logits = run(model, transcript)
    expected, best = np.array(transcript["logits"]), np.array(transcript["best"])
    found = np.take_along_axis(logits, best, axis=-1)
    if not np.isfinite(logits).all():
        print("Core ML's logits are not finite")
        return 3
    largest = float(np.abs(found - expected).max())
    missed = [t for t in range(len(best)) if logits[t].max() - found[t, 0] > TOLERANCE]
    print(f"{len(best)} positions on {arguments.units}: logits differ by at most {largest:.3f}")
    if missed or largest > TOLERANCE:
        print(f"out of bounds ({TOLERANCE}); positions where another token comes first: {missed or 'none'}")
        return 3
    print("confirmed")
    return 0


def run(model: Any, transcript: dict[str, Any]) -> np.ndarray:
    """Logits of every position, fed chunk by chunk through the model's states, as swift-transformers feeds them."""
    state, past, logits = model.make_state(), 0, []
    tokens, name = transcript["tokens"], transcript.get("mask", "fullAttentionMask")
    for size in transcript["chunks"]:
        mask = np.zeros((1, 1, 1, past + size + 1), np.float16)  # the program builds the causal mask itself
        if name == "fullAttentionMask":
            rows, columns = np.arange(past, past + size)[:, None], np.arange(past + size)[None]
            mask = np.where(columns > rows, np.finfo(np.float16).min, 0).astype(np.float16)[None, None]
        inputs = {"inputIds": np.array([tokens[past : past + size]], np.int32), name: mask}
        logits.append(np.asarray(model.predict(inputs, state=state)["logits"], np.float32)[0])
        past += size
    return np.concatenate(logits)


if __name__ == "__main__":
    sys.exit(main())
