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
from typing import Any, get_args, get_type_hints

from qwen3_export.errors import OptionError

__all__ = ["OptionText", "TargetOptions", "make_options", "option", "option_texts", "require_choice"]

KEY = "option"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionText:
    """How an option is told and spelled on the command line.

    ``hidden`` are older spellings, which go on working; ``metavar`` stands for the value in ``--help``.
    """

    help: str
    hidden: tuple[str, ...] = ()
    metavar: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions:
    """Options of one target. Subclasses check in ``__post_init__`` what does not depend on the model."""

    @property
    def needs_text(self) -> bool:
        """Whether the target measures something on the calibration text, whatever the method."""
        return False


def option(default: Any, *, help: str, hidden: tuple[str, ...] = (), metavar: str | None = None) -> Any:
    """A field of a ``TargetOptions``, with what ``--help`` says of it."""
    text = OptionText(help=help, hidden=hidden, metavar=metavar)
    return dataclasses.field(default=default, metadata={KEY: text})


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
