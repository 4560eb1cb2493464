"""Run an ONNX folder in onnxruntime: tokens in, logits of every position out, with a KV cache between calls.

A session can also run an altered graph (another accuracy level, more outputs) over the same data file. The check uses
this for onnxruntime's exact form and for hidden states.
"""

# B batch  T tokens  V vocabulary  1 one token

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import CheckpointError, MissingExtraError
from qwen3_export.parallel import default_threads

__all__ = ["CacheSize", "OnnxSession", "OnnxStream", "Side", "is_installed", "runtime_version"]

Side = Literal["left", "right"]

ERRORS_ONLY = 3
FIRST_CACHE = "past_key_values.0.key"


def is_installed() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def runtime_version() -> str | None:
    """The version of onnxruntime, or None if it is not installed."""
    try:
        return importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """Fields that size the KV cache, named as in ``config.json``, for use without a whole config."""

    num_key_value_heads: int
    head_dim: int


class OnnxSession:
    """One graph in onnxruntime on the CPU.

    ``graph`` is the file, or its bytes together with ``folder``, which holds the data file. Without ``config``, the
    sizes of the caches come from the graph's inputs. Raises MissingExtraError without onnxruntime, and CheckpointError
    if onnxruntime refuses the graph.
    """

    def __init__(
        self,
        graph: Path | bytes,
        config: Qwen3Config | CacheSize | None = None,
        *,
        folder: Path | None = None,
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError(package="onnxruntime", extra="onnx", purpose="running an ONNX graph") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or default_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        source, where = (graph, folder) if isinstance(graph, bytes) else (str(graph), graph)
        try:
            self._session: Any = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises many types
            raise CheckpointError(f"{where}: onnxruntime cannot load it ({_first_line(error)})") from error
        inputs = {value.name: value for value in self._session.get_inputs()}
        missing = {"input_ids", "attention_mask", FIRST_CACHE} - inputs.keys()
        if missing:
            raise CheckpointError(f"{where}: the graph has no input {min(missing)}")
        self._has_position_ids = "position_ids" in inputs
        self._float = np.float16 if inputs[FIRST_CACHE].type == "tensor(float16)" else np.float32
        self._cache_sizes = {
            name: (config.num_key_value_heads, config.head_dim) if config else (value.shape[1], value.shape[3])
            for name, value in inputs.items()
            if name.startswith("past_key_values.")
        }
        if not all(isinstance(size, int) for sizes in self._cache_sizes.values() for size in sizes):
            raise CheckpointError(f"{where}: nothing says how large its caches are; name the checkpoint with `model`")
        self._outputs = [value.name for value in self._session.get_outputs()]

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of every position in one prefill, [T, V] fp32."""
        return next(self.run(tokens))

    def run(self, tokens: Sequence[int], *, chunk: int | None = None) -> Iterator[np.ndarray]:
        """Run tokens in chunks through the KV cache; yields the logits of each chunk, [chunk, V] fp32."""
        for found in self._run_outputs(tokens, chunk or len(tokens)):
            yield found["logits"][0].astype(np.float32, copy=False)

    def _run_outputs(self, tokens: Sequence[int], step: int) -> Iterator[dict[str, np.ndarray]]:
        """All outputs, chunk by chunk."""
        caches = self._empty_caches(1)
        for start in range(0, len(tokens), step):
            part = np.array([tokens[start : start + step]], np.int64)
            mask = np.ones((1, start + part.shape[1]), np.int64)
            found = self._call(part, mask, start + np.arange(part.shape[1])[None], caches)
            caches = self._next_caches(found)
            yield found

    def caches(self, tokens: Sequence[int], *, chunk: int) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Keys and values of each layer, [S, K, H], after a run in chunks."""
        caches: dict[str, np.ndarray] = {}
        for found in self._run_outputs(tokens, chunk):
            caches = self._next_caches(found)
        by_token = {name: values[0].transpose(1, 0, 2) for name, values in caches.items()}
        return {
            layer: (by_token[f"past_key_values.{layer}.key"], by_token[f"past_key_values.{layer}.value"])
            for layer in range(len(by_token) // 2)
        }

    def stream(self) -> OnnxStream:
        """Start a sequence that can be continued as its tokens become known."""
        return OnnxStream(self)

    def padded_logits(
        self, texts: Sequence[Sequence[int]], *, side: Side = "right", steps: int = 0, pad: int = 0
    ) -> list[np.ndarray]:
        """Logits of several texts in one batch, padded on one side; [T, V] for each text.

        The last ``steps`` tokens of each text are given one by one after a prefill with the others, as when they are
        generated.
        """
        longest = max(map(len, texts)) - steps
        ids_BT = np.full((len(texts), longest), pad, np.int64)
        mask_BT = np.zeros((len(texts), longest), np.int64)
        spans = []
        for i, text in enumerate(texts):
            count = len(text) - steps
            spans.append(slice(0, count) if side == "right" else slice(longest - count, longest))
            ids_BT[i, spans[i]], mask_BT[i, spans[i]] = text[:count], 1
        caches: Mapping[str, np.ndarray] = self._empty_caches(len(texts))
        found = self._call(ids_BT, mask_BT, _positions(mask_BT), caches)
        logits_BTV = found["logits"].astype(np.float32, copy=False)
        parts = [[logits_BTV[i, span]] for i, span in enumerate(spans)]
        for step in range(steps, 0, -1):
            caches = self._next_caches(found)
            mask_BT = np.concatenate((mask_BT, np.ones((len(texts), 1), np.int64)), axis=1)
            ids_B1 = np.array([[text[-step]] for text in texts], np.int64)
            found = self._call(ids_B1, mask_BT, _positions(mask_BT)[:, -1:], caches)
            for i, made in enumerate(parts):
                made.append(found["logits"][i].astype(np.float32, copy=False))
        return [np.concatenate(made) for made in parts]

    def outputs(self, tokens: Sequence[int]) -> Mapping[str, np.ndarray]:
        """Every output of one prefill, by name."""
        ids = np.array([tokens], np.int64)
        return self._call(ids, np.ones_like(ids), np.arange(len(tokens))[None], self._empty_caches(1))

    def _call(
        self, ids_BT: np.ndarray, mask: np.ndarray, positions_BT: np.ndarray, caches: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        feeds = {**self._token_feeds(ids_BT, mask, positions_BT), **caches}
        try:
            return dict(zip(self._outputs, self._session.run(None, feeds), strict=True))
        except Exception as error:  # onnxruntime raises many types
            raise CheckpointError(f"onnxruntime cannot run the graph ({_first_line(error)})") from error

    def _run_values(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Like ``_call``, for values that onnxruntime already holds: nothing is copied to numpy."""
        try:
            return dict(zip(self._outputs, self._session.run_with_ort_values(None, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime raises many types
            raise CheckpointError(f"onnxruntime cannot run the graph ({_first_line(error)})") from error

    def _token_feeds(self, ids_BT: np.ndarray, mask: np.ndarray, positions_BT: np.ndarray) -> dict[str, np.ndarray]:
        feeds = {"input_ids": ids_BT, "attention_mask": mask}
        if self._has_position_ids:
            feeds["position_ids"] = positions_BT.astype(np.int64)
        return feeds

    def _ort_values(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
        from onnxruntime import OrtValue

        return {name: OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}

    def _empty_caches(self, batch: int) -> dict[str, np.ndarray]:
        return {
            name: np.zeros((batch, kv_heads, 0, head_dim), self._float)
            for name, (kv_heads, head_dim) in self._cache_sizes.items()
        }

    def _next_caches(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            f"past_key_values.{name.removeprefix('present.')}": values
            for name, values in found.items()
            if name.startswith("present.")
        }


class OnnxStream:
    """A growing sequence; its caches stay in onnxruntime's own values between calls."""

    def __init__(self, session: OnnxSession) -> None:
        self._session, self._caches = session, session._ort_values(session._empty_caches(1))
        self._length = 0

    def append(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens and return the logits [V] of the last one."""
        ids = np.array([tokens], np.int64)
        mask, positions = np.ones((1, self._length + len(tokens)), np.int64), self._length + np.arange(len(tokens))
        feeds = self._session._token_feeds(ids, mask, positions[None])
        found = self._session._run_values({**self._session._ort_values(feeds), **self._caches})
        self._caches = self._session._next_caches(found)
        self._length += len(tokens)
        return np.array(found["logits"].numpy()[0, -1], np.float32)


def _positions(mask_BT: np.ndarray) -> np.ndarray:
    """Positions as transformers counts them: tokens from 0, and 1 for padding."""
    return np.where(mask_BT == 1, mask_BT.cumsum(axis=1) - 1, 1)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
