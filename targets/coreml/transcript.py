"""What a Mac should confirm: some tokens, and the logits that the package gives them where fp16 rounds.

The file lies beside the package. ``examples/coreml_confirm.py``, which needs coremltools alone, runs the package
through Core ML on a Mac and compares.
"""

# T tokens  V vocabulary

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.checkpoint.model import Model
from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_transcript
from qwen3_export.targets.coreml.names import PACKAGE
from qwen3_export.targets.coreml.run import CoremlSession

__all__ = ["TRANSCRIPT", "write_transcript"]

TRANSCRIPT = "transcript.json"
QUESTION = "Tell me about the sea."
BEST = 5
# Two steps of the cache after the prompt, so that states are seen to work.
STEPS = 2


def write_transcript(folder: Path, model: Model) -> None:
    """Run a short prompt and write down the best logits of every position."""
    tokenizer = model.tokenizer
    question = list(tokenizer.encode(QUESTION))
    tokens = question + question[:STEPS]
    session = CoremlSession(folder / PACKAGE, runs="fp16", num_parameters=model.graph.num_parameters)
    logits_TV = next(session.run(tokens))
    best_TB = np.argsort(-logits_TV, axis=-1, kind="stable")[:, :BEST]
    document: dict[str, Any] = {
        "tokens": tokens,
        "chunks": [len(tokens) - STEPS, *[1] * STEPS],
        "best": best_TB.tolist(),
        "logits": [[round(float(v), 4) for v in row] for row in np.take_along_axis(logits_TV, best_TB, axis=-1)],
    }
    write_text(folder / TRANSCRIPT, json.dumps(document) + "\n", overwrite=True, is_ours=is_transcript)
