"""Optional libraries: asked for where they are used, answered with the command that installs them."""

from __future__ import annotations

import importlib
from types import ModuleType

from bit_transformer.errors import MissingExtra


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: dotted name of the module, such as `transformers`.
        extra: the extra of this package that installs it.
        purpose: what needs it, as the start of a sentence ("the decode benchmark").

    Raises:
        MissingExtra: the library is not installed. A library that is installed and broken raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module.partition(".")[0]:
            raise
        raise MissingExtra(
            f"{purpose} needs the library {module!r}, which is not installed. Try: pip install 'bit-transformer[{extra}]'"
        ) from missing
