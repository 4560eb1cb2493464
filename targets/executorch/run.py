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


# Names of ExecuTorch's numbers of types (its scalar_type.h).
TYPE_NAMES = {
    0: "uint8",
    1: "int8",
    2: "int16",
    3: "int32",
    4: "int64",
    5: "fp16",
    6: "fp32",
    7: "fp64",
    11: "bool",
    15: "bf16",
}


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
    """One opened program. Raises MissingExtraError without ExecuTorch, CheckpointError if it refuses the file.

    Its method ``forward`` is loaded when it is first run, or by ``refusal``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forward: Any = None
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
        except Exception as error:  # the runtime raises RuntimeError and others
            raise CheckpointError(f"{path}: ExecuTorch cannot load it ({error})") from error

    @property
    def refusal(self) -> str | None:
        """Why the runtime cannot run the program's ``forward``, or None."""
        try:
            self._load_forward()
        except CheckpointError as error:
            return str(error)
        return None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(sorted(self._program.method_names))

    def shapes(self, method: str) -> tuple[list[str], list[str]]:
        """Types and shapes of a method's inputs and outputs, in words; the shapes are those of its longest input."""
        meta = self._program.metadata(method)
        inputs = [_words(meta.input_tensor_meta, i) for i in range(meta.num_inputs())]
        return inputs, [_words(meta.output_tensor_meta, i) for i in range(meta.num_outputs())]

    @property
    def max_tokens(self) -> int | None:
        """The most tokens that one call takes, by the shape that the program plans for; None for other inputs."""
        try:
            meta = self._program.metadata("forward")
            shape = tuple(meta.input_tensor_meta(0).sizes()) if meta.num_inputs() else ()
        except Exception:  # there is no forward, or its first input is no tensor
            return None
        return int(shape[1]) if len(shape) == 2 and shape[0] == 1 else None

    @property
    def num_logits(self) -> int | None:
        """The size of the vocabulary, by the last dimension of what ``forward`` gives; None where it says no shape."""
        try:
            shape = tuple(self._program.metadata("forward").output_tensor_meta(0).sizes())
        except Exception:  # there is no forward, or its output is no tensor
            return None
        return int(shape[-1]) if shape else None

    def constant(self, name: str) -> Any:
        """The value of a constant method: a number, a boolean or a list; None if there is no such method."""
        if name not in self._program.method_names:
            return None
        try:
            with native_remarks_dropped():
                if self._program.metadata(name).num_inputs():
                    return None
                found = self._program.load_method(name).execute([])
        except Exception as error:  # the runtime raises RuntimeError and others
            raise CheckpointError(f"{self.path}: ExecuTorch cannot run its method {name} ({error})") from error
        values = [value.item() if isinstance(value, torch.Tensor) and value.ndim == 0 else value for value in found]
        return values[0] if len(values) == 1 else values

    def last_logits(self, tokens: Sequence[int], *, start: int = 0) -> np.ndarray:
        """The logits [V] of the last token; the first token is at position ``start``."""
        self._load_forward()
        try:
            with native_remarks_dropped():
                out = self._forward.execute([torch.tensor([list(tokens)]), torch.tensor([start])])[0]
            logits = np.array(out.float().numpy()[0])
        except Exception as error:
            raise CheckpointError(f"ExecuTorch cannot run the program ({error})") from error
        return logits[-1] if logits.ndim == 2 else logits  # another tool's program may give every position's

    def _load_forward(self) -> None:
        if self._forward is not None:
            return
        if "forward" not in self._program.method_names:
            told = ", ".join(self.methods) or "none"
            raise CheckpointError(f"{self.path}: has no method forward; its methods are {told}")
        try:
            with native_remarks_dropped():
                self._forward = self._program.load_method("forward")
        except Exception as error:  # the runtime raises RuntimeError and others
            raise CheckpointError(f"{self.path}: ExecuTorch cannot load its method forward ({error})") from error

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of every position, [T, V], token by token through the KV cache."""
        return np.stack([self.last_logits([token], start=i) for i, token in enumerate(tokens)])

    def chunks(self, tokens: Sequence[int], size: int) -> Iterator[tuple[int, np.ndarray]]:
        """Run tokens in chunks; yields the position of each chunk's last token, and that token's logits."""
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            yield start + len(part) - 1, self.last_logits(part, start=start)


def _words(meta_of: Any, index: int) -> str:
    """The type and shape of an input or output, or that it is no tensor."""
    try:
        meta = meta_of(index)
        name = TYPE_NAMES.get(int(meta.dtype()), f"type {meta.dtype()}")
        return f"{name} {list(meta.sizes())}"
    except Exception:  # the runtime raises RuntimeError for what is no tensor
        return "no tensor"
