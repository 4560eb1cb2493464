"""The weights of a Core ML package whose formats can be chosen, and the formats that each may have.

A choice stays with what the recipe's processor is quick with. GPUs: integers in blocks, and whole rows of int8. The
Neural Engine: palettes, and integers with one scale a row. Palettes of 1 bit are not offered: they keep little more
than signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from qwen3_export.graph import Graph
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.targets.allocating import Slot
from qwen3_export.targets.coreml.layout import StoredMatrix, matrix_bytes, row_step
from qwen3_export.targets.coreml.recipes import CoremlFormat, table_rows
from qwen3_export.targets.coreml.target import GROUP_SIZES

__all__ = ["slots_of"]

# int8 in wider blocks than these has nearly the bytes of whole rows.
INT8_BLOCKS = (32, 128)
# The most rows that share a table, by bits: few where tables are small.
TABLES: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {2: (4, 16), 3: (4, 16), 4: (4, 8, 16, 32), 6: (8, 16, 32), 8: (16, 32)}
)


def slots_of(
    graph: Graph, formats: Mapping[str, CoremlFormat], matrices: Sequence[StoredMatrix], *, has_blocks: bool
) -> tuple[Slot, ...]:
    """A slot for each weight that the recipe quantizes; ``formats`` are the recipe's, ``matrices`` what is stored.

    The parts of a split head share a format, one under which each begins with a whole byte and a whole table.
    """
    found = []
    for weight in graph:
        planned = formats[weight.name]
        if planned.is_float:
            continue
        stored = [matrix for matrix in matrices if matrix.weight == weight.name]
        offered = {
            number_format.name: number_format
            for number_format in (*_offered(weight.shape, has_blocks=has_blocks), planned)
            if all(matrix.rows.start % row_step(number_format) == 0 for matrix in stored)
        }
        found.append(
            Slot(
                name=weight.name,
                shape=weight.shape,
                weights=(weight.name,),
                formats=offered,
                num_bytes={
                    name: sum(matrix_bytes(matrix.shape, number_format) for matrix in stored)
                    for name, number_format in offered.items()
                },
                planned=planned.name,
            )
        )
    return tuple(found)


def _offered(shape: tuple[int, ...], *, has_blocks: bool) -> Iterator[CoremlFormat]:
    rows, columns = shape
    if has_blocks:
        for num_bits, sizes in ((4, GROUP_SIZES), (8, INT8_BLOCKS)):
            for size in sizes:
                if columns % size == 0:  # one block a row is a whole row, and read back as one
                    block = None if size == columns else size
                    yield AffineFormat(num_bits=num_bits, group_size=block, scale_dtype="f16")
    else:
        for num_bits, most in TABLES.items():
            for size in most:
                yield PaletteFormat(num_bits=num_bits, rows_per_table=table_rows(rows, size))
        yield AffineFormat(num_bits=4, scale_dtype="f16")
    yield AffineFormat(num_bits=8, scale_dtype="f16")
