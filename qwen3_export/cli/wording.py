"""The library's sentences in the command line's words: parameters become options.

The library names a parameter in backticks, as Python spells it: `group_size`, `overwrite=True`. Here that becomes
--group-size and --force.
"""

from __future__ import annotations

import re

__all__ = ["as_options", "option_name"]

PARAMETER = re.compile(r"`([a-z][a-z0-9_]*)(?:=(True|False))?`")
# Parameters that the command line calls otherwise.
OPTIONS = {"overwrite": "--force", "recipe": "--quant", "text": "--calibration", "num_samples": "--samples"}


def as_options(sentence: str) -> str:
    """The sentence with options in the place of parameters."""
    return PARAMETER.sub(lambda found: option_name(found[1], is_off=found[2] == "False"), sentence)


def option_name(parameter: str, *, is_off: bool = False) -> str:
    """The option that sets a parameter: --group-size for group_size."""
    name = OPTIONS.get(parameter, f"--{parameter.replace('_', '-')}")
    return name.replace("--", "--no-", 1) if is_off else name
