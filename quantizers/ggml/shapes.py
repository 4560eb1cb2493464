"""The numbers that define each block format: sizes of blocks and groups, ranges of codes, levels.

All of GGML's block formats are built in the same way. A block has one scale, and perhaps one offset, in float16. It is
cut into groups, each of which may multiply these by small integers of its own. A code of a few bits selects a level:

    value = (block_scale * sub_scale) * level(code) - (block_offset * sub_offset)

Source: ``ggml/src/ggml-common.h`` and ``ggml-quants.c`` of llama.cpp for the layouts and the IQ4 code book.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["BLOCK_SHAPES", "IQ4_LEVELS", "BlockShape"]

IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The levels of IQ4_NL and IQ4_XS: dense in the middle, where most weights are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    """The numbers of one format; ``block_bytes`` is what a block takes in a file.

    Codes run from ``code_low`` to ``code_high`` and are stored plus ``code_bias``; sub-scales likewise. Sub-offsets
    run from 0 to ``sub_high``. A format without sub-scales has ``sub_high`` 0.
    """

    block_bytes: int
    block_size: int
    group_size: int
    code_low: int
    code_high: int
    code_bias: int = 0
    has_offset: bool = False
    sub_low: int = 0
    sub_high: int = 0
    sub_bias: int = 0
    levels: tuple[int, ...] | None = None

    @property
    def groups(self) -> int:
        """Groups in a block."""
        return self.block_size // self.group_size

    @property
    def has_subs(self) -> bool:
        """Whether groups have integers of their own."""
        return self.sub_high > 0

    @property
    def subs(self) -> int:
        """Sub-scales and sub-offsets in a block."""
        return self.groups * (1 + self.has_offset) if self.has_subs else 0


BLOCK_SHAPES: Mapping[str, BlockShape] = MappingProxyType(
    {
        "Q8_0": BlockShape(block_bytes=34, block_size=32, group_size=32, code_low=-127, code_high=127),
        "Q4_0": BlockShape(block_bytes=18, block_size=32, group_size=32, code_low=-8, code_high=7, code_bias=8),
        "Q4_1": BlockShape(block_bytes=20, block_size=32, group_size=32, code_low=0, code_high=15, has_offset=True),
        "Q5_0": BlockShape(block_bytes=22, block_size=32, group_size=32, code_low=-16, code_high=15, code_bias=16),
        "Q5_1": BlockShape(block_bytes=24, block_size=32, group_size=32, code_low=0, code_high=31, has_offset=True),
        "Q2_K": BlockShape(
            block_bytes=84, block_size=256, group_size=16, code_low=0, code_high=3, has_offset=True, sub_high=15
        ),
        "Q3_K": BlockShape(
            block_bytes=110,
            block_size=256,
            group_size=16,
            code_low=-4,
            code_high=3,
            code_bias=4,
            sub_low=-32,
            sub_high=31,
            sub_bias=32,
        ),
        "Q4_K": BlockShape(
            block_bytes=144, block_size=256, group_size=32, code_low=0, code_high=15, has_offset=True, sub_high=63
        ),
        "Q5_K": BlockShape(
            block_bytes=176, block_size=256, group_size=32, code_low=0, code_high=31, has_offset=True, sub_high=63
        ),
        "Q6_K": BlockShape(
            block_bytes=210,
            block_size=256,
            group_size=16,
            code_low=-32,
            code_high=31,
            code_bias=32,
            sub_low=-128,
            sub_high=127,
        ),
        "IQ4_NL": BlockShape(block_bytes=18, block_size=32, group_size=32, code_low=0, code_high=15, levels=IQ4_LEVELS),
        "IQ4_XS": BlockShape(
            block_bytes=136,
            block_size=256,
            group_size=32,
            code_low=0,
            code_high=15,
            sub_low=-32,
            sub_high=31,
            sub_bias=32,
            levels=IQ4_LEVELS,
        ),
    }
)
