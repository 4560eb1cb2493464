"""Compare a file's values with the checkpoint's: what the number format and the data explain, and what they do not.

Values stored without loss must be equal. Values that were rounded to nearest must be near: each target says how far off
a format may be (``Limits``), and a damaged block stands out.

A solver does not aim at the checkpoint's values. It compensates the errors of earlier weights, and moves weights that
its text never used as far as it likes, so no limit on the error follows from the format. Two other things are known:

- Whatever it chose is recorded when it is written, as a digest (``quantizers.weights.digests``). Values that have the
  recorded digest are what the solver chose; others are damaged.
- A row still is the checkpoint's row, plus an error. Rows of another tensor, and those of a permuted or a transposed
  one, do not correlate with it: over n columns their correlation has a standard deviation of 1 / sqrt(n) around zero,
  and half of them are negative. ``_Correlations`` tells from that, without a limit on the error.

Without a recorded digest, as in other tools' files, what exceeds the format's limits is a note, and not a fault.

Norms are stored without loss, unless they were tuned: then a digest of theirs is recorded too, and each number is
within ``MOST_OF_A_NORM`` of the checkpoint's.
"""

# R rows  I in_features

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.weights.digests import ValueDigest, digest_name
from qwen3_export.quantizers.weights.tuned import MOST_OF_A_NORM

__all__ = ["Limits", "ValueCheck", "WeightError", "compare_values"]

# In standard deviations of no correlation: as far as this is none, and from this on rows are the checkpoint's for sure.
NONE, SURE = 5.0, 10.0
# This share of rows with a negative correlation is more than errors give, even of eight times the row's own size.
NEGATIVE_SHARE, NEGATIVE_ROWS = 0.02, 3

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
    """What was compared, and one sentence for each weight that differs from the checkpoint's.

    ``notes`` are about weights that are far off, where nobody knows how far off they may be.
    """

    weights: int
    rows: int
    rows_in_all: int
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()
    errors: tuple[WeightError, ...] = ()


class _Correlations:
    """The correlation of each row with the checkpoint's, the mean of the rows taken off, for it is common to all."""

    def __init__(self) -> None:
        self._rows: list[np.ndarray] = []
        self._sigmas: list[np.ndarray] = []
        self._products = np.zeros(3)
        self._num_values = 0

    def add(self, ours_RI: np.ndarray, theirs_RI: np.ndarray, *, first: int) -> None:
        """Take the next rows, of which the first has the number ``first``."""
        mean_I = theirs_RI.mean(0) if len(theirs_RI) > 1 else np.float32(0)
        ours, theirs = ours_RI - mean_I, theirs_RI - mean_I
        both_R = np.einsum("ri,ri->r", ours, theirs, dtype=np.float64)
        ours_R, theirs_R = (np.einsum("ri,ri->r", x, x, dtype=np.float64) for x in (ours, theirs))
        # Rows of zeros, and rows that are all the same, correlate with nothing.
        largest = float(np.square(theirs_RI).sum(1).max(initial=0.0))
        tells_R = theirs_R > 1e-6 * max(largest, 1e-30)
        sigmas_R = np.sqrt(ours.shape[1]) * both_R / np.sqrt(np.maximum(ours_R * theirs_R, 1e-60))
        self._rows.append(first + np.flatnonzero(tells_R))
        self._sigmas.append(sigmas_R[tells_R])
        self._products += [both_R[tells_R].sum(), ours_R[tells_R].sum(), theirs_R[tells_R].sum()]
        self._num_values += int(tells_R.sum()) * ours.shape[1]

    def unrelated_rows(self) -> list[int]:
        """The rows that are not the checkpoint's: all, those of a permutation, or single ones among sure ones."""
        if not self._num_values:
            return []
        rows_R, sigmas_R = np.concatenate(self._rows), np.concatenate(self._sigmas)
        both, ours, theirs = self._products
        of_all = np.sqrt(self._num_values) * both / np.sqrt(max(ours * theirs, 1e-60))
        negative = int((sigmas_R < 0).sum())
        is_permuted = negative >= max(NEGATIVE_ROWS, NEGATIVE_SHARE * len(rows_R))
        if of_all >= NONE and not is_permuted and np.median(sigmas_R) < SURE:
            return []
        return [int(row) for row in rows_R[sigmas_R < NONE]]


@dataclass(slots=True)
class _Errors:
    """Sums over the rows seen so far, and the worst block."""

    squared_error: float = 0.0
    squared_value: float = 0.0
    worst_block: float = 0.0
    worst_row: int = 0
    largest_excess: float = 0.0  # for an unquantized weight: error minus what its format allows
    rows: int = 0
    correlations: _Correlations = field(default_factory=_Correlations)

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
    digests: Mapping[str, str] | None = None,
    verify: Verify | None = None,
    progress: Progress | None = None,
) -> ValueCheck:
    """Compare the values read back (``stored``) with the graph that was meant to be stored.

    ``is_solved``: the values may be a solver's choice; ``digests`` are what the file records of it, by ``digest_name``.
    ``verify`` compares our decoding with another one, block of rows by block of rows.
    """
    budget = QUICK_VALUES // max(len(stored.weights), 1)
    if is_full or expected.num_parameters <= QUICK_VALUES:
        budget = expected.num_parameters
    found: list[_Compared] = []
    record = _Record(digests or {}, stored)
    for i, weight in enumerate(stored):
        compared = _compare(
            weight,
            expected.weights[weight.name],
            list(_row_blocks(weight, budget)),
            limits=limits(weight),
            is_solved=is_solved and (not digests or record.has(weight)),
            record=record,
            verify=verify,
        )
        found.append(compared)
        if progress is not None:
            progress(i + 1, len(stored.weights))
    return ValueCheck(
        weights=len(stored.weights),
        rows=sum(compared.errors.rows for compared in found),
        rows_in_all=sum(weight.shape[0] for weight in stored),
        differences=(*(text for compared in found for text in _differences(compared)), *_damaged(found, record)),
        notes=tuple(_notes(found, record)),
        errors=tuple(_weight_errors(found)),
    )


class _Record:
    """The digests that a file records, beside those of the values that are read."""

    def __init__(self, recorded: Mapping[str, str], stored: Graph) -> None:
        self._recorded = recorded
        self._left = dict.fromkeys(recorded, 0)
        for weight in stored:
            if self.has(weight):
                self._left[digest_name(weight.role)] += weight.shape[0]
        self._digests = {name: ValueDigest() for name in recorded}

    def has(self, weight: Weight) -> bool:
        return digest_name(weight.role) in self._recorded

    def add(self, weight: Weight, values: np.ndarray) -> None:
        """Take the next rows of a weight."""
        name = digest_name(weight.role)
        if name in self._recorded:
            self._digests[name].add(values)
            self._left[name] -= len(values)

    def is_kept(self, weight: Weight) -> bool | None:
        """Whether the values are those that were recorded; None if that is not known, as not all of them were read."""
        name = digest_name(weight.role)
        if self._left.get(name) != 0:
            return None
        return self._digests[name].text() == self._recorded[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Compared:
    """One weight, its errors, and how they are to be judged; ``wrong`` is a fault that ended the comparison."""

    weight: Weight
    errors: _Errors
    limits: Limits | None
    is_solved: bool
    wrong: str | None = None


def _differences(compared: _Compared) -> list[str]:
    """What is wrong with one weight, in at most one sentence."""
    if compared.wrong is not None:
        return [compared.wrong]
    weight, errors = compared.weight, compared.errors
    if compared.limits is None or not compared.is_solved:
        return _judge(weight, errors, limits=compared.limits)
    unrelated = errors.correlations.unrelated_rows()
    if unrelated:
        return [
            f"{weight.name}: row {unrelated[0]} ({len(unrelated)} of {errors.rows} rows) does not correlate with the "
            "checkpoint's; another tensor, a permuted or a transposed one, or damage"
        ]
    return []


def _damaged(found: list[_Compared], record: _Record) -> Iterator[str]:
    """One sentence for each digest that the values read do not have, if nothing else is wrong with them."""
    names = {digest_name(compared.weight.role): compared.weight for compared in found}
    told = {digest_name(compared.weight.role) for compared in found if _differences(compared)}
    for name, weight in names.items():
        if name not in told and record.is_kept(weight) is False:
            yield f"{name}: its values are not those that the solver chose, by their digest; the file is damaged"


def _notes(found: list[_Compared], record: _Record) -> Iterator[str]:
    """One sentence on weights that are further off than rounding explains, and of which no digest tells."""
    far = [
        compared.weight.name
        for compared in found
        if compared.is_solved
        and compared.limits is not None
        and record.is_kept(compared.weight) is None
        and _judge(compared.weight, compared.errors, limits=compared.limits)
    ]
    if far:
        yield (
            f"{far[0]} ({len(far)} such weights) is further from the checkpoint's than rounding explains: a solver's "
            "choice, or damage; the file has no record that tells"
        )


def _weight_errors(found: list[_Compared]) -> Iterator[WeightError]:
    """The errors of matrices; those of a layer's experts together."""
    seen: dict[tuple[str, int | None, str], _Errors] = {}
    for compared in found:
        weight = compared.weight
        if len(weight.shape) > 1:
            key = (weight.role.kind.value, weight.role.layer, weight.format)
            seen[key] = compared.errors if key not in seen else seen[key].merged(compared.errors)
    for key, errors in seen.items():
        yield _weight_error(*key, errors)


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


def _compare(
    weight: Weight,
    expected: Weight,
    chosen: list[slice],
    *,
    limits: Limits | None,
    is_solved: bool,
    record: _Record,
    verify: Verify | None,
) -> _Compared:
    """Compare the chosen rows of one weight."""
    errors = _Errors(rows=sum(rows.stop - rows.start for rows in chosen))
    wrong = None
    for rows in chosen:
        ours, theirs = weight.read(rows), expected.read(rows)
        record.add(weight, ours)
        if not np.isfinite(ours).all():
            errors.squared_error = float("inf")
            row = rows.start + int(np.argwhere(~np.isfinite(ours.reshape(len(ours), -1)).all(1))[0, 0])
            wrong = f"{weight.name}: NaN or Inf in row {row} of the file"
            break
        if limits is None:
            allowance = _rounding_allowance(weight.format, expected.format, theirs)
            if record.has(weight):
                allowance = allowance + np.abs(theirs) * np.float32(MOST_OF_A_NORM * (1 + 2**-20))
            _add_excess(errors, ours, theirs, allowance, first=rows.start)
        else:
            _add_errors(errors, ours, theirs, block_size=limits.block_size, first=rows.start)
            if is_solved:
                errors.correlations.add(ours, theirs, first=rows.start)
        wrong = None if verify is None else verify(weight, rows, ours)
        if wrong is not None:
            break
    return _Compared(weight=weight, errors=errors, limits=limits, is_solved=is_solved, wrong=wrong)


def _add_excess(
    errors: _Errors, ours: np.ndarray, theirs: np.ndarray, allowance: np.ndarray | float, *, first: int
) -> None:
    """Add the errors of floats beyond what is allowed: the rounding of their format, and what tuning may do."""
    errors.add(ours - theirs, theirs)
    excess = np.abs(ours - theirs) - allowance
    worst = float(excess.max(initial=0.0))
    if worst > errors.largest_excess:
        errors.largest_excess = worst
        errors.worst_row = first + int(np.unravel_index(excess.argmax(), excess.shape)[0])


def _add_errors(errors: _Errors, ours: np.ndarray, theirs: np.ndarray, *, block_size: int, first: int) -> None:
    difference = ours - theirs
    errors.add(difference, theirs)
    by_block = (len(ours), -1, block_size)
    squared_errors = np.square(difference).reshape(by_block).sum(-1)
    squared_values = np.square(theirs).reshape(by_block).sum(-1)
    # Blocks that are almost zero beside the others do not count: their scale may round to zero.
    floor = 1e-6 * float(squared_values.mean())
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


def _judge(weight: Weight, errors: _Errors, *, limits: Limits | None) -> list[str]:
    name, number_format = weight.name, weight.format
    if limits is None:
        if errors.largest_excess > 0:
            return [f"{name}: is stored as {number_format} and differs from the checkpoint (row {errors.worst_row})"]
        return []
    if errors.relative > limits.tensor:
        return [
            f"{name}: relative error {errors.relative:.3f}, where {number_format} explains up to {limits.tensor:.2g}; "
            "another tensor, a permuted or a transposed one"
        ]
    if errors.worst_block > limits.block:
        return [
            f"{name}: a block of row {errors.worst_row} has relative error {errors.worst_block:.3f}, where "
            f"{number_format} explains up to {limits.block:.2g}; the file is damaged there"
        ]
    return []
