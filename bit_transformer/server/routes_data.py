"""Data that requests can name: corpora, declared folders, uploads."""

from __future__ import annotations

import asyncio
from pathlib import Path as FilePath
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel

from bit_transformer.errors import BitStreamError, UploadNotFound
from bit_transformer.server.dependencies import Server
from bit_transformer.server.errors import answers
from bit_transformer.server.routes_jobs import Done
from bit_transformer.service.home import DataSource

router = APIRouter(tags=["data"], responses=answers(404, 503))
PIECE = 1 << 20
UploadId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]


class Uploaded(BaseModel):
    """An upload; its id is its name in requests."""

    id: str
    bytes: int


@router.get("/api/corpora")
def corpora(server: Server) -> list[DataSource]:
    """Corpora, declared folders, and uploads."""
    return server.home.sources()


@router.post(
    "/api/uploads",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "required": True,
        }
    },
)
async def upload(
    server: Server,
    request: Request,
    name: Annotated[str, Query(max_length=200, description="Only for display.")] = "data",
) -> Uploaded:
    """Keep the body of the request as data. It is stored as it is, never unpacked and never run."""
    place, path = server.home.new_upload(name)
    size = 0
    try:
        with path.open("wb") as file:
            async for piece in request.stream():
                size += len(piece)
                await asyncio.to_thread(file.write, piece)
        if not size:
            raise BitStreamError("got an empty body; at least one byte is needed. Try a file", field="body")
    except BaseException:
        server.home.remove_upload(place)
        raise
    return Uploaded(id=place, bytes=size)


@router.get(
    "/api/uploads/{upload}",
    response_class=FileResponse,
    responses={200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
)
def download(server: Server, upload: UploadId) -> Response:
    """An upload, or a file that a job has written."""
    path = server.home.upload_path(upload)
    if not path.is_file():
        raise UploadNotFound(f"got upload {upload!r}; its file is not there yet. Try again when its job is done")
    names = {source.id: source.name for source in server.home.list_uploads()}
    name = FilePath(names.get(f"upload:{upload}", "data")).name
    return FileResponse(path, filename=name, media_type="application/octet-stream")


@router.delete("/api/uploads/{upload}")
def remove(server: Server, upload: UploadId) -> Done:
    """Remove an upload."""
    server.home.remove_upload(upload)
    return Done()
