"""Errors as answers: which status each kind has, and one shape for all."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bit_transformer import errors
from bit_transformer.server.security import BodyTooLarge
from bit_transformer.service.job_process import error_record

# The nearest class above an error's own counts.
STATUS: dict[type[errors.BitTransformerError], int] = {
    errors.BitTransformerError: 422,
    errors.RunNotFound: 404,
    errors.JobNotFound: 404,
    errors.UploadNotFound: 404,
    errors.CheckpointError: 409,
    errors.RunBusy: 409,
    errors.RunNotRunning: 409,
    errors.Refused: 403,
    errors.Cancelled: 409,
    errors.SafetyRejection: 409,
    errors.TrainingError: 409,
    errors.RankFailed: 503,
    errors.QueueFull: 429,
    errors.StoreError: 503,
    errors.MissingExtra: 424,
}


class ErrorAnswer(BaseModel):
    """What went wrong, in one line; the field that was wrong, if one was; what to try."""

    error: str
    message: str
    field: str | None = None
    tries: list[str] = []


def status_of(error: errors.BitTransformerError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's documentation: the errors that it may answer with, besides those of all routes."""
    return {status: {"model": ErrorAnswer} for status in (400, 401, 403, 413, 421, 422, 429, 507, *statuses)}


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error of this package."""
    assert isinstance(error, errors.BitTransformerError)
    if isinstance(error, errors.RunNotFound) and (run := request.path_params.get("run")):
        error = request.app.state.server.about_to_begin(run) or error
    return JSONResponse(error_record(error), status_of(error))


async def refuse_invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer to fields of the wrong type, in one line."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "it cannot be read")
        text = f"the body is not JSON ({why}, character {first['loc'][-1]}). Try {{}}"
        return JSONResponse(ErrorAnswer(error="Invalid", message=text).model_dump(), 422)
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    got = repr(first.get("input"))[:80]
    text = f"{field or 'the body'}: got {got}; {first['msg'][:1].lower()}{first['msg'][1:]}. Try what GET /openapi.json says"
    return JSONResponse(ErrorAnswer(error="Invalid", message=text, field=field or None).model_dump(), 422)


async def refuse_http(request: Request, error: Exception) -> JSONResponse:
    """Answer where there is no such route, or not for this method."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path[:100]}: {str(error.detail).lower()}. Try GET /openapi.json"
    return JSONResponse(ErrorAnswer(error="Http", message=text).model_dump(), error.status_code, error.headers)


async def refuse_large(request: Request, error: Exception) -> JSONResponse:
    """Answer to a body that turned out too large, and read no more of it."""
    return JSONResponse(ErrorAnswer(error="TooLarge", message=str(error)).model_dump(), 413, {"connection": "close"})


async def refuse_system(request: Request, error: Exception) -> JSONResponse:
    """Answer where the system refuses, such as a full disk."""
    return JSONResponse(request.app.state.server.home.named(error_record(error)), 507)


async def refuse_gone(request: Request, error: Exception) -> JSONResponse:
    """Answer to a request that broke off, or came too slowly; mostly nobody reads it."""
    text = "got only a part of the body, or got it too slowly. Try again"
    return JSONResponse(ErrorAnswer(error="Incomplete", message=text).model_dump(), 400)


HANDLERS: dict[Any, Any] = {
    OSError: refuse_system,
    ClientDisconnect: refuse_gone,
    errors.BitTransformerError: refuse,
    RequestValidationError: refuse_invalid,
    HTTPException: refuse_http,
    BodyTooLarge: refuse_large,
}
