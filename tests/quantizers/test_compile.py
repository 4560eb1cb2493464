"""Where compiled kernels are kept."""

from __future__ import annotations

from pathlib import Path

import numba
import pytest

from qwen3_export.quantizers.compile import cache_folder, kernel


def test_numbas_own_variable_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "here"))
    assert cache_folder(tmp_path) == tmp_path / "here"


def test_the_users_cache_is_used_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    sources = tmp_path / "kernels"
    sources.mkdir()
    (sources / "one.py").write_text("x = 1")
    folder = cache_folder(sources)
    assert folder.parent == tmp_path / "qwen3-export" / "numba"
    assert folder == cache_folder(sources)
    # A kernel that inlined a function must not outlive an edit of it.
    (sources / "one.py").write_text("x = 2")
    assert folder != cache_folder(sources)


def test_other_users_of_numba_keep_their_setting() -> None:
    before = numba.config.CACHE_DIR

    @kernel
    def double(x: float) -> float:
        return 2 * x

    assert double(2.0) == 4.0
    assert before == numba.config.CACHE_DIR
