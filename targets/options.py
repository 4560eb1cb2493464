"""What a target's options have in common: one dataclass a target, with its help texts and its limits.

The same fields are the keyword arguments of ``qwen3_export.plan`` and the options of the target's command::

    @dataclass(frozen=True, slots=True, kw_only=True)
    class OnnxOptions(TargetOptions):
        group_size: int = option(32, help="Columns that share a scale.", hidden=("--block-size",))

Importing this is light: the command line's ``--help`` reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from qwen3_export.errors import OptionError

__all__ = [
    "AllocatingOptions",
    "OptionText",
    "TargetOptions",
    "make_options",
    "option",
    "option_texts",
    "require_choice",
]

KEY = "option"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionText:
    """How an option is told and spelled on the command line.

    ``hidden`` are older spellings, which go on working; ``metavar`` stands for the value in ``--help``.
    """

    help: str
    hidden: tuple[str, ...] = ()
    metavar: str | None = None


def option(default: Any, *, help: str, hidden: tuple[str, ...] = (), metavar: str | None = None) -> Any:
    """A field of a ``TargetOptions``, with what ``--help`` says of it."""
    text = OptionText(help=help, hidden=hidden, metavar=metavar)
    return dataclasses.field(default=default, metadata={KEY: text})


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Options of one target. Subclasses check in ``__post_init__`` what does not depend on the model."""

    tune: bool = option(False, help="After gptq, tune norms and scales against the model's own answers.")

    @property
    def needs_text(self) -> bool:
        """Whether the target measures something on the calibration text, whatever the method."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatingOptions(TargetOptions):
    """Options of a target whose formats can be given where they count."""

    allocate: bool = option(
        False, help="Give each tensor the format that loses least, in no more bytes than the recipe takes."
    )
    size: str | None = option(
        None, help="The same, in at most this size instead of the recipe's, such as 2.3G.", metavar="SIZE"
    )
    bits_per_weight: float | None = option(
        None, help="The same, in at most so many bits a weight, such as 4.25.", metavar="BITS"
    )
    allocation: Path | None = option(None, help="Take the formats that an earlier export has saved.")  # noqa: RUF009
    save_allocation: Path | None = option(  # noqa: RUF009 (the two names end as methods do)
        None, help="Save the formats that are chosen, for --allocation."
    )

    def __post_init__(self) -> None:
        asked = [name for name in ("size", "bits_per_weight", "allocation") if getattr(self, name) is not None]
        asked = ["allocate", *asked] if self.allocate else asked
        if len(asked) > 1:
            raise OptionError(f"`{asked[0]}` and `{asked[1]}` exclude each other; give one")
        if self.save_allocation is not None and not self.chooses_formats:
            raise OptionError("`save_allocation` saves what is chosen: give `allocate`, `size` or `bits_per_weight`")
        if self.bits_per_weight is not None and not self.bits_per_weight > 0:
            raise OptionError(f"`bits_per_weight` {self.bits_per_weight:g}: must be positive")

    @property
    def needs_text(self) -> bool:
        """Formats are measured on the calibration text, whatever the method."""
        return self.chooses_formats

    @property
    def chooses_formats(self) -> bool:
        """Whether formats are chosen by what they cost on the calibration text."""
        return self.allocate or self.size is not None or self.bits_per_weight is not None

    @property
    def gives_formats(self) -> bool:
        """Whether formats are those that lose least here, or lost least in an earlier export."""
        return self.chooses_formats or self.allocation is not None


def option_texts(options: type[TargetOptions]) -> Iterator[tuple[str, Any, Any, OptionText]]:
    """Name, type, default and text of each option."""
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        yield field.name, types[field.name], field.default, field.metadata[KEY]


def make_options(options: type[TargetOptions], title: str, values: Mapping[str, Any]) -> TargetOptions:
    """The options with the given values; OptionError for one that the target does not have."""
    known = [field.name for field in dataclasses.fields(options)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise OptionError(f"{unknown[0]}: {title} has no such option; it has {', '.join(known)}")
    return options(**values)


def require_choice(parameter: str, value: object, choices: Any) -> None:
    """Refuse a value that is none of the choices (a Literal type, or a collection of values)."""
    allowed = get_args(choices) or tuple(choices)
    if value not in allowed:
        raise OptionError(f"`{parameter}` {value}: use one of {', '.join(map(str, allowed))}")
