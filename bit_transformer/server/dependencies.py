"""What routes ask for: the server's parts, and ids in paths."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Request

from bit_transformer.server.state import State
from bit_transformer.service.home import NAME


def _state(request: Request) -> State:
    state: State = request.app.state.server
    return state


Server = Annotated[State, Depends(_state)]
RunId = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="A run's name.")]
JobId = Annotated[int, Path(ge=1, lt=1 << 53, description="A job's number.")]
