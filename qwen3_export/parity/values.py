"""Compare a file's values with the checkpoint's: errors must not exceed what the number format explains.

Values stored without loss must be equal, and quantized values must be near. A transposed, permuted or wrong matrix is
100 % off or more, and a damaged block stands out among the others. Each target sets how far off a format may be
(``Limits``). A solver that compensates the errors of earlier weights does not aim at the checkpoint's values: it moves
fine weights as far as coarse ones. For GPTQ, 1.34 and 1.14 times the limits of plain rounding in the coarsest format
were measured, and twice that is allowed. A wrong matrix (1.41 times its own size) exceeds that.
"""

# R rows  I in_features

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from qwen3_export.graph import Graph, Weight

__all__ = ["Limits", "ValueCheck", "WeightError", "compare_values"]

SOLVED_TENSOR_FACTOR, SOLVED_BLOCK_FACTOR, SOLVED_TENSOR_LIMIT = 2.7, 2.3, 0.95

# A quick check reads about this many values in all, and at least this many rows of each weight.
QUICK_VALUES, QUICK_ROWS = 1 << 26, 16
VALUES_PER_BLOCK = 1 << 21

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest allowed relative RMS error of a quantized weight, and of one block of ``block_size`` columns."""

    tensor: float
    block: float
    block_size: int


# None for a weight whose format holds floats
LimitsOf = Callable[[Weight], Limits | None]
# Arguments: a weight, a range of its rows, and their values as we decode them. Returns what is wrong, or None.
Verify = Callable[[Weight, slice, np.ndarray], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightError:
    """The relative error (root mean square) of a matrix; the experts of a layer count together."""

    role: str  # the checkpoint's name: q_proj, down_proj, embed_tokens
    layer: int | None
    format: str
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueCheck:
    """What was compared, and one sentence for each weight that differs from the checkpoint's."""

    weights: int
    rows: int
    rows_in_all: int
    differences: tuple[str, ...]
    errors: tuple[WeightError, ...] = ()


@dataclass(slots=True)
class _Errors:
    """Sums over the rows seen so far, and the worst block."""

    squared_error: float = 0.0
    squared_value: float = 0.0
    worst_block: float = 0.0
    worst_row: int = 0
    largest_excess: float = 0.0  # for an unquantized weight: error minus what its format allows

    def add(self, difference: np.ndarray, expected: np.ndarray) -> None:
        self.squared_error += float(np.vdot(difference, difference))
        self.squared_value += float(np.vdot(expected, expected))

    def merged(self, other: _Errors) -> _Errors:
        """The sums of both, for experts of the same layer."""
        return _Errors(
            squared_error=self.squared_error + other.squared_error,
            squared_value=self.squared_value + other.squared_value,
        )

    @property
    def relative(self) -> float:
        return float(np.sqrt(self.squared_error / max(self.squared_value, 1e-30)))


def compare_values(
    stored: Graph,
    expected: Graph,
    *,
    limits: LimitsOf,
    is_full: bool,
    is_solved: bool = False,
    verify: Verify | None = None,
    progress: Progress | None = None,
) -> ValueCheck:
    """Compare the values read back (``stored``) with the graph that was meant to be stored.

    ``is_solved``: a solver has chosen the values, so they need not be the nearest to the checkpoint's. ``verify``
    compares our decoding with another one, block of rows by block of rows.
    """
    budget = QUICK_VALUES // max(len(stored.weights), 1)
    if is_full or expected.num_parameters <= QUICK_VALUES:
        budget = expected.num_parameters
    differences: list[str] = []
    seen: dict[tuple[str, int | None, str], _Errors] = {}
    allowed = {weight.name: limits(weight) for weight in stored}
    if is_solved:
        allowed = _solved_limits(allowed)
    rows_seen = rows_in_all = 0
    for i, weight in enumerate(stored):
        chosen = list(_row_blocks(weight, budget))
        found, errors = _check_weight(
            weight,
            expected.weights[weight.name],
            chosen,
            limits=allowed[weight.name],
            is_solved=is_solved,
            verify=verify,
        )
        differences += found
        if len(weight.shape) > 1:
            key = (weight.role.kind.value, weight.role.layer, weight.format)
            seen[key] = errors if key not in seen else seen[key].merged(errors)
        rows_seen += sum(rows.stop - rows.start for rows in chosen)
        rows_in_all += weight.shape[0]
        if progress is not None:
            progress(i + 1, len(stored.weights))
    return ValueCheck(
        weights=len(stored.weights), rows=rows_seen, rows_in_all=rows_in_all, differences=tuple(differences),
        errors=tuple(_weight_error(*key, errors) for key, errors in seen.items()),
    )  # fmt: skip


def _solved_limits(allowed: Mapping[str, Limits | None]) -> dict[str, Limits | None]:
    """Limits for a solver, which compensates errors of other weights, also those in the coarsest format."""
    known = [limits for limits in allowed.values() if limits is not None]
    tensor = min(SOLVED_TENSOR_FACTOR * max((limits.tensor for limits in known), default=0.0), SOLVED_TENSOR_LIMIT)
    block = SOLVED_BLOCK_FACTOR * max((limits.block for limits in known), default=0.0)
    return {
        name: None if limits is None else replace(limits, tensor=tensor, block=block)
        for name, limits in allowed.items()
    }


def _weight_error(role: str, layer: int | None, number_format: str, errors: _Errors) -> WeightError:
    """Keep four digits, because a report holds some hundreds of these."""
    return WeightError(role=role, layer=layer, format=number_format, relative=float(f"{errors.relative:.4g}"))


def _row_blocks(weight: Weight, budget: int) -> Iterator[slice]:
    """Blocks of rows: all rows, or a few blocks spread evenly, of about ``budget`` values at most."""
    num_rows, row_size = weight.shape[0], int(np.prod(weight.shape[1:]))
    wanted = min(num_rows, max(QUICK_ROWS, budget // row_size))
    if wanted == num_rows or len(weight.shape) == 1:
        step = max(1, VALUES_PER_BLOCK // row_size)
        yield from (slice(i, min(i + step, num_rows)) for i in range(0, num_rows, step))
        return
    blocks = min(8, wanted // QUICK_ROWS)
    size = wanted // blocks
    for start in np.linspace(0, num_rows - size, blocks, dtype=np.int64):
        yield slice(int(start), int(start) + size)


def _check_weight(
    weight: Weight,
    expected: Weight,
    chosen: list[slice],
    *,
    limits: Limits | None,
    is_solved: bool,
    verify: Verify | None,
) -> tuple[list[str], _Errors]:
    """Return what is wrong with one weight, and its errors."""
    errors = _Errors()
    for rows in chosen:
        ours, theirs = weight.read(rows), expected.read(rows)
        if not np.isfinite(ours).all():
            errors.squared_error = float("inf")
            row = rows.start + int(np.argwhere(~np.isfinite(ours.reshape(len(ours), -1)).all(1))[0, 0])
            return [f"{weight.name}: NaN or Inf in row {row} of the file"], errors
        if limits is None:
            _add_excess(errors, ours, theirs, number_format=weight.format, source=expected.format, first=rows.start)
        else:
            _add_errors(errors, ours, theirs, block_size=limits.block_size, first=rows.start, is_solved=is_solved)
        wrong = None if verify is None else verify(weight, rows, ours)
        if wrong is not None:
            return [wrong], errors
    return _judge(weight, errors, limits=limits, is_solved=is_solved), errors


def _add_excess(
    errors: _Errors, ours: np.ndarray, theirs: np.ndarray, *, number_format: str, source: str, first: int
) -> None:
    """Add the errors of floats beyond the rounding of their format."""
    errors.add(ours - theirs, theirs)
    excess = np.abs(ours - theirs) - _rounding_allowance(number_format, source, theirs)
    worst = float(excess.max(initial=0.0))
    if worst > errors.largest_excess:
        errors.largest_excess = worst
        errors.worst_row = first + int(np.unravel_index(excess.argmax(), excess.shape)[0])


def _add_errors(
    errors: _Errors, ours: np.ndarray, theirs: np.ndarray, *, block_size: int, first: int, is_solved: bool
) -> None:
    difference = ours - theirs
    errors.add(difference, theirs)
    by_block = (len(ours), -1, block_size)
    squared_errors = np.square(difference).reshape(by_block).sum(-1)
    squared_values = np.square(theirs).reshape(by_block).sum(-1)
    # Blocks that are almost zero beside the others do not count: their scale may round to zero.
    floor = 1e-6 * float(squared_values.mean())
    if is_solved:  # a solver's changes to a small block are measured by the row's other blocks
        squared_values = np.maximum(squared_values, squared_values.mean(-1, keepdims=True))
    relative = np.sqrt(squared_errors / np.maximum(squared_values, max(floor, 1e-30)))
    worst = float(relative.max())
    if worst > errors.worst_block:
        errors.worst_block = worst
        errors.worst_row = first + int(np.unravel_index(relative.argmax(), relative.shape)[0])


def _rounding_allowance(number_format: str, source: str, values: np.ndarray) -> np.ndarray | float:
    """Half a unit in the last place of F16 and BF16; zero if the format holds every stored value."""
    if number_format in ("F32", source):
        return 0.0
    allowance: np.ndarray = np.abs(values) * (2.0**-11 if number_format == "F16" else 2.0**-8) + 2.0**-25
    return allowance


def _judge(weight: Weight, errors: _Errors, *, limits: Limits | None, is_solved: bool) -> list[str]:
    name, number_format = weight.name, weight.format
    if limits is None:
        if errors.largest_excess > 0:
            return [f"{name}: is stored as {number_format} and differs from the checkpoint (row {errors.worst_row})"]
        return []
    why = "a solver" if is_solved else number_format
    if errors.relative > limits.tensor:
        return [
            f"{name}: relative error {errors.relative:.3f}, where {why} explains up to {limits.tensor:.2g}; "
            "another tensor, a permuted or a transposed one"
        ]
    if errors.worst_block > limits.block:
        return [
            f"{name}: a block of row {errors.worst_row} has relative error {errors.worst_block:.3f}, where "
            f"{why} explains up to {limits.block:.2g}; the file is damaged there"
        ]
    return []
