"""Run llama.cpp through llama-cpp-python's low-level API: load a file, tokenize, get logits of every position.

This is the only file that uses that API. The API is ctypes over C structs whose fields come and go between releases. So
fields are set only if they exist, and only plain numbers and arrays leave this file.
"""

# T tokens  V vocabulary

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.errors import CheckpointError, MissingExtraError
from qwen3_export.parallel import default_threads

__all__ = ["LlamaModel", "LlamaSession", "is_installed", "open_model", "runtime_version"]

logger = logging.getLogger(__name__)

GGML_TYPE_F32 = 0
KEY_TYPES = {"F32": GGML_TYPE_F32, "F16": 1, "Q8_0": 8, "Q4_0": 2}
LOG_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.DEBUG}

# Called with the name of a tensor in llama.cpp's graph and its values (flat, token by token).
Observer = Callable[[str, np.ndarray], None]


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def runtime_version() -> str | None:
    """The version of llama-cpp-python, which pins one llama.cpp, or None if it is not installed."""
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return None


class LlamaModel:
    """A GGUF file opened by llama.cpp. Use ``open_model``, which also closes it."""

    def __init__(self, path: Path, *, threads: int | None = None, vocabulary_only: bool = False) -> None:
        self._api = api = _library().api
        _library().listen()
        self.threads = threads or default_threads()
        params = api.llama_model_default_params()
        _set_where_known(params, n_gpu_layers=0, vocab_only=vocabulary_only, use_mmap=True)
        handle = api.llama_model_load_from_file(str(path).encode(), params)
        if not handle:
            raise CheckpointError(f"{path}: llama.cpp cannot load it ({_library().last_error()})")
        self.handle = handle
        self._vocabulary = api.llama_model_get_vocab(handle)
        self.vocab_size: int = api.llama_vocab_n_tokens(self._vocabulary)
        self.close = weakref.finalize(self, api.llama_model_free, handle)

    @property
    def eos_token_id(self) -> int:
        return int(self._api.llama_vocab_eos(self._vocabulary))

    @property
    def context_length(self) -> int:
        """The number of positions that the model was made for."""
        return int(self._api.llama_model_n_ctx_train(self.handle))

    @property
    def chat_template(self) -> str | None:
        """The file's chat template in Jinja, or None if it has none."""
        found = self._api.llama_model_chat_template(self.handle, None)
        return None if found is None else str(found.decode())

    @property
    def named_tokens(self) -> dict[str, str]:
        """The special tokens that llama.cpp gives to a chat template, by the names that templates know."""
        api, vocabulary = self._api, self._vocabulary
        ids = {"bos_token": api.llama_vocab_bos(vocabulary), "eos_token": api.llama_vocab_eos(vocabulary)}
        return {name: api.llama_vocab_get_text(vocabulary, i).decode() for name, i in ids.items() if i >= 0}

    def metadata(self, key: str) -> str | None:
        """One value of the file's metadata as text, or None if there is no such key."""
        room = 256
        buffer = ctypes.create_string_buffer(room)
        length = self._api.llama_model_meta_val_str(self.handle, key.encode(), buffer, room)
        return None if length < 0 else buffer.value.decode(errors="replace")

    def is_end(self, token: int) -> bool:
        """True if generation ends at this token."""
        return bool(self._api.llama_vocab_is_eog(self._vocabulary, token))

    def piece(self, token: int) -> bytes:
        """The bytes of a token; empty for a token that is never shown, such as ``<|im_end|>``."""
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = self._api.llama_token_to_piece(self._vocabulary, token, buffer, room, 0, False)
            if length >= 0:
                return buffer.raw[:length]
            room = -length

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids of ``text``, with markup such as ``<|im_start|>`` parsed.

        ``add_special`` puts the tokens around it that the file says belong around a text (a BOS, an EOS).
        """
        data = text.encode()
        room = len(data) + 8
        ids = (ctypes.c_int32 * room)()
        count = self._api.llama_tokenize(self._vocabulary, data, len(data), ids, room, add_special, True)
        if count < 0:
            raise CheckpointError(f"llama.cpp needs {-count} tokens for {len(data)} bytes of text")
        return list(ids[:count])

    @contextmanager
    def session(
        self,
        *,
        positions: int,
        batch: int | None = None,
        is_exact: bool = False,
        key_type: str | None = None,
        observer: Observer | None = None,
    ) -> Iterator[LlamaSession]:
        """Open a context for sequences of up to ``positions`` tokens, ``batch`` of them (default: all) at once.

        ``is_exact`` keeps the KV cache in F32 and flash attention off; otherwise llama.cpp's defaults apply (F16,
        automatic). ``key_type`` (one of KEY_TYPES) is the type of cached keys. ``observer`` is called with the named
        tensors of the graph as they are computed.
        """
        session = LlamaSession(
            self, positions=positions, batch=batch or positions, is_exact=is_exact, key_type=key_type, observer=observer
        )
        try:
            yield session
        finally:
            session.close()


class LlamaSession:
    """One llama.cpp context. Each ``run`` starts with an empty KV cache; ``append`` continues with the current one."""

    def __init__(
        self,
        model: LlamaModel,
        *,
        positions: int,
        batch: int,
        is_exact: bool,
        key_type: str | None,
        observer: Observer | None,
    ) -> None:
        self._api = api = _library().api
        self._model = model
        self._error: BaseException | None = None
        params = api.llama_context_default_params()
        _set_where_known(
            params, n_ctx=positions, n_batch=batch, n_ubatch=batch,
            n_threads=model.threads, n_threads_batch=model.threads, no_perf=True,
        )  # fmt: skip
        if is_exact:
            _set_where_known(params, type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32)
            # Before this field existed (2025), flash attention was off by default.
            _set_where_known(params, flash_attn_type=getattr(api, "LLAMA_FLASH_ATTN_TYPE_DISABLED", 0))
        if key_type is not None:
            _set_where_known(params, type_k=KEY_TYPES[key_type])
        if observer is not None:
            self._callback = api.ggml_backend_sched_eval_callback(self._observe(observer))
            params.cb_eval = self._callback
        self._handle = api.llama_init_from_model(model.handle, params)
        if not self._handle:
            raise CheckpointError(f"llama.cpp cannot make a context ({_library().last_error()})")
        self._batch = api.llama_batch_init(batch, 0, 1)
        self.close = weakref.finalize(self, _close_session, api, self._handle, self._batch)

    def logits(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits of every position in one prefill, [T, V] fp32: a view that the next call overwrites."""
        return next(self.run(tokens))

    def run(self, tokens: Sequence[int], *, chunk: int | None = None) -> Iterator[np.ndarray]:
        """Run tokens in chunks through the KV cache; yields logits, [chunk, V] fp32, each a view until the next."""
        self._api.llama_memory_clear(self._api.llama_get_memory(self._handle), True)
        step = chunk or len(tokens)
        for start in range(0, len(tokens), step):
            yield self._decode(tokens[start : start + step], start)

    def append(self, tokens: Sequence[int], *, start: int) -> np.ndarray:
        """The logits [V] of the last token. The first token is at position ``start``, where the cache ends."""
        return np.array(self._decode(tokens, start, first_wanted=len(tokens) - 1)[0])

    def _decode(self, tokens: Sequence[int], start: int, *, first_wanted: int = 0) -> np.ndarray:
        """Logits of the tokens from index ``first_wanted`` on."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, int(i >= first_wanted)
        status = self._api.llama_decode(self._handle, batch)
        if self._error is not None:
            raise self._error
        if status != 0:
            reason = _library().last_error()
            raise CheckpointError(f"llama.cpp cannot run the file (status {status}: {reason})")
        pointer = self._api.llama_get_logits(self._handle)
        return np.ctypeslib.as_array(pointer, shape=(len(tokens) - first_wanted, self._model.vocab_size))

    def _observe(self, observer: Observer) -> Callable[[int, bool, object], bool]:
        """A callback that passes F32 tensors to the observer. An exception in it is raised after the run."""
        read = _library().tensor_reader()

        def callback(tensor: int, is_question: bool, _user_data: object) -> bool:
            if not is_question and self._error is None:
                try:
                    found = read(tensor)
                    if found is not None:
                        observer(*found)
                except BaseException as error:  # it must not cross C code
                    self._error = error
            return True

        return callback


@contextmanager
def open_model(path: Path, *, threads: int | None = None, vocabulary_only: bool = False) -> Iterator[LlamaModel]:
    """Load a GGUF file (for a split one: its first part).

    Raises MissingExtraError without llama-cpp-python, and CheckpointError if llama.cpp refuses the file.
    """
    model = LlamaModel(path, threads=threads, vocabulary_only=vocabulary_only)
    try:
        yield model
    finally:
        model.close()


class _Library:
    """llama_cpp with its log redirected. The callback must live as long as the library."""

    def __init__(self) -> None:
        try:
            from llama_cpp import llama_cpp
        except ImportError as error:
            raise MissingExtraError(package="llama-cpp-python", extra="llama", purpose="running a GGUF file") from error
        self.api: Any = llama_cpp
        self._errors: deque[str] = deque(maxlen=3)
        self._log_callback = llama_cpp.llama_log_callback(self._log)
        llama_cpp.llama_backend_init()

    def listen(self) -> None:
        """Take over the log, which another user of the library in this process may have redirected."""
        self._errors.clear()
        self.api.llama_log_set(self._log_callback, ctypes.c_void_p(0))

    def _log(self, level: int, text: bytes, _user_data: object) -> None:
        line = text.decode(errors="replace").strip()
        if level == 4 and line:
            self._errors.append(line)
        if line:
            logger.log(LOG_LEVELS.get(level, logging.DEBUG), "llama.cpp: %s", line)

    def last_error(self) -> str:
        """The latest error lines of llama.cpp's log, which say more than its null pointers."""
        message = "; ".join(self._errors) or "it gives no reason"
        self._errors.clear()
        return message

    def tensor_reader(self) -> Callable[[int], tuple[str, np.ndarray] | None]:
        """A function from a ggml_tensor* to its name and flat values, or None if they are not F32."""
        from llama_cpp._ggml import libggml

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(libggml, name)
            found.restype, found.argtypes = result, list(arguments)
            return found

        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        get_name = function("ggml_get_name", ctypes.c_char_p, pointer)
        num_elements = function("ggml_nelements", ctypes.c_int64, pointer)
        num_bytes = function("ggml_nbytes", size, pointer)
        is_contiguous = function("ggml_is_contiguous", ctypes.c_bool, pointer)
        copy_out = function("ggml_backend_tensor_get", None, pointer, pointer, size, size)

        def read(tensor: int) -> tuple[str, np.ndarray] | None:
            count = num_elements(tensor)
            if num_bytes(tensor) != 4 * count or not is_contiguous(tensor):
                return None
            values = np.empty(count, dtype=np.float32)
            copy_out(tensor, values.ctypes.data, 0, 4 * count)
            return get_name(tensor).decode(), values

        return read


@lru_cache(maxsize=1)
def _library() -> _Library:
    return _Library()


def _close_session(api: Any, handle: Any, batch: Any) -> None:
    api.llama_batch_free(batch)
    api.llama_free(handle)


def _set_where_known(params: Any, **settings: Any) -> None:
    for name, value in settings.items():
        if hasattr(params, name):
            setattr(params, name, value)
