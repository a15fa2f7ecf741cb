"""The hub's token: from the environment, from the hub's own library, or from the keyring of the system.

This package writes it to no file, no log and no record. What keeps it is the hub's library (`hf auth login`) or the keyring.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bit_transformer.errors import BitTransformerError, HubError, MissingExtra
from bit_transformer.extras import require

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SERVICE, NAME = "bit-transformer", "hub"  # under which the keyring has it
SIGN_IN = "`hf auth login`, or a token in HF_TOKEN"
KEYRING = "the system's keyring"


@dataclass(frozen=True)
class Token:
    """A token, and where it is from. Its text is in no representation of it."""

    text: str = field(repr=False)
    source: str


def known_token(hub: Any) -> Token | None:
    """The token that is used: of the environment, else of the hub's library, else of the keyring.

    Args:
        hub: the module `huggingface_hub`.
    """
    if found := hub.get_token():
        named = next((name for name in VARIABLES if os.environ.get(name, "").strip() == found), None)
        return Token(str(found), f"the variable {named}" if named else "the hub's library (hf auth login)")
    try:
        with _keyring() as keyring:
            kept = keyring.get_password(SERVICE, NAME)
    except BitTransformerError:  # no keyring, or none that can be asked
        return None
    return Token(kept, KEYRING) if kept else None


def keep_token(text: str) -> None:
    """Keep a token in the system's keyring.

    Raises:
        MissingExtra: the library `keyring` is not installed.
        HubError: the system has no keyring that is safe, or refuses.
    """
    with _keyring() as keyring:
        # Below 1: none at all, or files that anybody can read.
        if keyring.get_keyring().priority < 1:
            raise HubError("got a token; this system has no safe keyring to keep it in", tries=(SIGN_IN,))
        keyring.set_password(SERVICE, NAME, text)


def forget_token() -> bool:
    """Remove the token from the system's keyring; whether there was one.

    Raises:
        MissingExtra: the library `keyring` is not installed.
        HubError: the keyring refuses.
    """
    with _keyring() as keyring:
        if keyring.get_password(SERVICE, NAME) is None:
            return False
        keyring.delete_password(SERVICE, NAME)
        return True


@contextmanager
def _keyring() -> Iterator[Any]:
    """Within: the library; what it raises becomes one line."""
    keyring = require("keyring", extra="hub", purpose="keeping a token")
    try:
        yield keyring
    except (BitTransformerError, MissingExtra):
        raise
    except (
        Exception
    ) as refused:  # each system's keyring has errors of its own; none of their texts is shown, lest one has the token
        raise HubError(f"the system's keyring cannot be used ({type(refused).__name__})", tries=(SIGN_IN,)) from None
