"""A weight whose codes and parameters lie ready in files: what a solver leaves in its work folder.

It offers what ``EncodedWeight`` does (see ``CodedWeight``), and holds nothing: rows are read when they are asked for.

    NAME.codes.npy        int8 [out_features, in_features]
    NAME.scale_RG.npy …   one array for each field of the parameters
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.files.atomic import partial_file
from qwen3_export.files.recognise import is_work_file
from qwen3_export.graph import ALL_ROWS, Role, module_name
from qwen3_export.quantizers.affine import AffineFormat, AffineParams
from qwen3_export.quantizers.palette import PaletteParams
from qwen3_export.quantizers.weights.coded import CodedFormat, read_coded

__all__ = ["StoredCodes", "save_codes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCodes:
    """A matrix in an affine or palette format; ``path`` is what the names of its files begin with."""

    role: Role
    shape: tuple[int, ...]
    number_format: CodedFormat
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """Codes and parameters of a block of rows."""
        first, last, _ = rows.indices(self.shape[0])
        block = slice(first, last)
        params_type = AffineParams if isinstance(self.number_format, AffineFormat) else PaletteParams
        arrays: dict[str, Any] = {field.name: self._open(field.name) for field in fields(params_type)}
        found = params_type(**arrays).rows(block, of=self.shape[0])
        # What is mapped is copied, so that its pages can go.
        copied: dict[str, Any] = {field.name: np.array(getattr(found, field.name)) for field in fields(found)}
        return np.array(self._open("codes")[block]), params_type(**copied)

    def codes(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The codes alone."""
        return np.array(self._open("codes")[rows])

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """What a runtime computes from the codes, fp32; any rows."""
        return read_coded(self, rows)

    def _open(self, part: str) -> np.ndarray:
        return np.asarray(np.load(_file(self.path, part), mmap_mode="r"))


def save_codes(path: Path, codes_RI: np.ndarray, params: AffineParams | PaletteParams) -> None:
    """Write the files of one weight; each appears whole."""
    arrays = {"codes": codes_RI} | {field.name: getattr(params, field.name) for field in fields(params)}
    for part, array in arrays.items():
        opened = partial_file(_file(path, part), overwrite=True, is_ours=is_work_file)
        with opened as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
            np.save(file, array)


def _file(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}.npy")
