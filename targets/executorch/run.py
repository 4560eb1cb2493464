"""Run a .pte in ExecuTorch's own runtime: tokens in, logits of the last token out."""

# T tokens  V vocabulary

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen3_export.errors import CheckpointError, MissingExtraError

__all__ = ["Program", "is_installed", "native_remarks_dropped", "quiet_libraries", "runtime_version"]


def is_installed() -> bool:
    return importlib.util.find_spec("executorch") is not None


def runtime_version() -> str | None:
    """The version of executorch, or None if it is not installed."""
    try:
        return importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        return None


def quiet_libraries() -> None:
    """Silence the warnings of torchao, torch and ExecuTorch about themselves. Call this before importing them."""
    for name in ("executorch", "torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def native_remarks_dropped() -> Iterator[None]:
    """Hide what native code prints about the processor. Errors are still raised."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 (a device)
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class Program:
    """One opened program. Raises MissingExtraError without ExecuTorch, CheckpointError if it refuses the file."""

    def __init__(self, path: Path) -> None:
        quiet_libraries()
        try:
            # These imports register the operators of attention and of quantized embeddings.
            import executorch.extension.llm.custom_ops.custom_ops
            import executorch.kernels.quantized  # noqa: F401
            from executorch.runtime import Runtime
        except ImportError as error:
            raise MissingExtraError(package="executorch", extra="executorch", purpose="running a .pte") from error
        try:
            with native_remarks_dropped():
                self._program: Any = Runtime.get().load_program(str(path))
                self._forward: Any = self._program.load_method("forward")
        except Exception as error:  # the runtime raises RuntimeError and others
            raise CheckpointError(f"{path}: ExecuTorch cannot load it ({error})") from error

    def constant(self, name: str) -> Any:
        """The value of a constant method: a number, a boolean or a list; None if there is no such method."""
        if name not in self._program.method_names:
            return None
        found = self._program.load_method(name).execute([])
        values = [value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value for value in found]
        return values[0] if len(values) == 1 else values

    def last_logits(self, tokens: Sequence[int], *, start: int = 0) -> np.ndarray:
        """The logits [V] of the last token; the first token is at position ``start``."""
        try:
            out = self._forward.execute([torch.tensor([list(tokens)]), torch.tensor([start])])[0]
        except Exception as error:
            raise CheckpointError(f"ExecuTorch cannot run the program ({error})") from error
        return np.array(out.numpy()[0])

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of every position, [T, V], token by token through the KV cache."""
        return np.stack([self.last_logits([token], start=i) for i, token in enumerate(tokens)])

    def chunks(self, tokens: Sequence[int], size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Run tokens in chunks; yields the position of each chunk's last token, and that token's logits."""
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            yield start + len(part) - 1, self.last_logits(part, start=start)
