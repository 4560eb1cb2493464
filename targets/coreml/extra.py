"""coremltools, the optional package, imported where it is needed and without remarks about this machine."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from qwen3_export.errors import MissingExtraError

__all__ = ["require_coremltools"]

# coremltools warns of Apple's frameworks that are not here, and of every library newer than it has seen; it imports
# torchao, where that is installed, which has remarks of its own. None of it concerns what is used of them here.
TALKATIVE = ("coremltools", "torchao", "torch.utils._pytree")


def require_coremltools(purpose: str) -> Any:
    """The package; MissingExtraError where it is not installed."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools
    except ImportError as error:
        raise MissingExtraError(package="coremltools", extra="coreml", purpose=purpose) from error
    return coremltools
