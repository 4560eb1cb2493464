"""Import coremltools, an optional package, only where it is needed and without its warnings."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from qwen3_export.errors import MissingExtraError

__all__ = ["require_coremltools"]

# coremltools warns about Apple frameworks that are missing here and about every library newer than it knows. It also
# imports torchao, if installed, which has warnings of its own. None of them concern what is used here.
TALKATIVE = ("coremltools", "torchao", "torch.utils._pytree")


def require_coremltools(purpose: str) -> Any:
    """Import and return coremltools. Raises MissingExtraError if it is not installed."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import coremltools
    except ImportError as error:
        raise MissingExtraError(package="coremltools", extra="coreml", purpose=purpose) from error
    return coremltools
