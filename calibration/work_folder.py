"""The folder in which a calibration run keeps its results, layer by layer, so that it can be resumed.

Its name depends on everything that the run depends on: the checkpoint, the tokens, the version of torch and the number
of its threads (on which the last bits of a product depend). A run that finds its own folder continues there, and its
results are the same bits as those of an undisturbed run. A different run has a different folder.

    statistics-1f0c…/hidden-0003.f32           the residual stream before layer 3
                     layer-0002.safetensors    the statistics of layer 2
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.calibration.digests import checkpoint_digest, file_stamps, text_digest, token_digest
from qwen3_export.calibration.hidden_file import HiddenFile
from qwen3_export.files.unfinished import make_run_folder
from qwen3_export.graph import Graph

__all__ = ["WorkFolder", "open_work_folder"]

# Raise it when a change makes results differ from those of older runs.
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFolder:
    """The folder of one run; ``lengths`` are the numbers of tokens of the windows."""

    path: Path
    lengths: Sequence[int]
    hidden_size: int
    num_layers: int

    @property
    def done_layers(self) -> int:
        """How many layers are done and need not be run again; 0 if there is nothing to continue."""
        for layer in range(self.num_layers, 0, -1):
            if self.hidden(layer).is_whole and all(self.layer_file(before).exists() for before in range(layer)):
                return layer
        return 0

    def hidden(self, layer: int) -> HiddenFile:
        """The residual stream before this layer."""
        return HiddenFile(
            path=self.path / f"hidden-{layer:04d}.f32", lengths=self.lengths, hidden_size=self.hidden_size
        )

    def layer_file(self, layer: int) -> Path:
        """The file for the statistics of this layer."""
        return self.path / f"layer-{layer:04d}.safetensors"

    def create(self) -> None:
        """Make the folder; OutputError if that is not possible."""
        make_run_folder(self.path)

    def remove(self) -> None:
        """Remove the folder, and the one that contains it if that is empty then."""
        shutil.rmtree(self.path, ignore_errors=True)
        with suppress(OSError):
            self.path.parent.rmdir()


def open_work_folder(root: Path, graph: Graph, *, windows: Sequence[NDArray[np.int64]]) -> WorkFolder:
    """The folder inside ``root`` for this checkpoint and these tokens; nothing is created yet."""
    key = text_digest(
        [
            f"statistics {VERSION}",
            f"torch {torch.__version__} {torch.get_num_threads()} threads",
            checkpoint_digest(graph),
            token_digest(windows),
            *file_stamps(graph),
        ]
    )
    return WorkFolder(
        path=root / f"statistics-{key[:16]}",
        lengths=[len(window_T) for window_T in windows],
        hidden_size=graph.config.hidden_size,
        num_layers=graph.config.num_hidden_layers,
    )
