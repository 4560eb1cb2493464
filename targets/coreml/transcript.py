"""Write tokens and their fp16 logits beside a package, so that a Mac can confirm them.

On a Mac, ``examples/coreml_confirm.py`` runs the package through Core ML and compares the logits. It needs only
coremltools.
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
# The last two tokens go through the cache one by one, to test the states.
STEPS = 2


def write_transcript(folder: Path, model: Model) -> None:
    """Run a short prompt, and write the best logits of every position."""
    tokenizer = model.tokenizer
    question = list(tokenizer.encode(QUESTION))
    tokens = question + question[:STEPS]
    session = CoremlSession(folder / PACKAGE, runs="fp16", num_parameters=model.graph.num_parameters)
    logits_TV = next(session.run(tokens))
    best_TB = np.argsort(-logits_TV, axis=-1, kind="stable")[:, :BEST]
    document: dict[str, Any] = {
        "tokens": tokens,
        "chunks": [len(tokens) - STEPS, *[1] * STEPS],
        "mask": session.mask,
        "best": best_TB.tolist(),
        "logits": [[round(float(v), 4) for v in row] for row in np.take_along_axis(logits_TV, best_TB, axis=-1)],
    }
    write_text(folder / TRANSCRIPT, json.dumps(document) + "\n", overwrite=True, is_ours=is_transcript)
