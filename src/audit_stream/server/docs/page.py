"""GET /docs: the API for people. GET /openapi.json: the same for programs, at the address most tools ask first."""

from pathlib import Path

import msgspec
from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from audit_stream.server.dashboard.page import HEADERS
from audit_stream.server.docs.render import page
from audit_stream.server.problems import AnyRequest

_STYLE = (Path(__file__).parent / "style.css").read_bytes()


@get("/openapi.json", include_in_schema=False)
async def openapi_json(request: AnyRequest) -> Response[bytes]:
    document = request.app.openapi_schema.to_schema()
    return Response(msgspec.json.encode(document), media_type="application/json")


@get("/docs", include_in_schema=False)
async def docs(request: AnyRequest) -> Response[bytes]:
    html = page(request.app.openapi_schema.to_schema())
    return Response(html.encode(), media_type="text/html", headers=HEADERS)


@get("/docs/{name:str}", include_in_schema=False)
async def docs_file(name: FromPath[str]) -> Response[bytes]:
    if name != "style.css":
        raise NotFoundException(f"the documentation has no file {name[:60]!r}")
    return Response(_STYLE, media_type="text/css", headers=HEADERS)
