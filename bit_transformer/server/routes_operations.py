"""Operations that write nothing: asked and answered, at once or piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.responses import StreamingResponse

from bit_transformer.errors import BitTransformerError, Cancelled, ConfigError
from bit_transformer.server.dependencies import Server
from bit_transformer.server.errors import answers
from bit_transformer.service.job_process import error_record
from bit_transformer.service.operations import OPERATIONS

router = APIRouter(tags=["operations"], responses=answers(404, 409, 424, 503))
LOOK = 1.0  # seconds between looks whether somebody still waits
Name = Annotated[str, Path(max_length=64, description="One of GET /api/operations that does not write.")]
Fields = Annotated[dict[str, Any], Body(description="Fields of its request; runs and data by id, bytes as base64.")]


@router.post("/api/operations/{name}")
async def ask(server: Server, request: Request, name: Name, fields: Fields) -> Any:
    """The result of an operation."""
    _check(server, name, fields)
    asked = asyncio.create_task(server.inference.ask(name, fields))
    try:
        while not asked.done():
            await asyncio.wait({asked}, timeout=LOOK)
            if not asked.done() and await request.is_disconnected():
                raise Cancelled("nobody waits for the answer any more")
    finally:
        asked.cancel()  # where it is not done; the process is told
    result = asked.result()
    server.note_gate(name, fields, result if isinstance(result, list) else [])
    return result


@router.post(
    "/api/operations/{name}/stream",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream(server: Server, name: Name, fields: Fields) -> Response:
    """The same as server-sent events: `piece`, `progress`, then `result` or `error`."""
    _check(server, name, fields)

    async def events() -> AsyncIterator[str]:
        try:
            async for kind, body in server.inference.stream(name, fields):
                if kind == "piece":
                    server.note_gate(name, fields, [body])
                yield f"event: {kind}\ndata: {json.dumps(body)}\n\n"
        except BitTransformerError as error:
            yield f"event: error\ndata: {json.dumps(error_record(error))}\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _check(server: Server, name: str, fields: dict[str, Any]) -> None:
    """Refuse what is no such operation, or not a valid request, before the process with the models is troubled."""
    if name not in OPERATIONS or OPERATIONS[name].writes:
        readers = ", ".join(operation.name for operation in OPERATIONS.values() if not operation.writes)
        why = (
            "which writes. Try POST /api/jobs" if name in OPERATIONS else f"; it must be one of {readers}. Try estimate"
        )
        raise ConfigError(f"got operation {name!r}{', ' if name in OPERATIONS else ''}{why}", field="name")
    server.home.request(name, fields)
