"""GET /dashboard: the page and its files, read once at start."""

from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from litestar import Response, get
from litestar.exceptions import NotFoundException
from litestar.params import FromPath

from audit_stream.server.problems import AnyRequest

_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# An event may hold any text. Should the page ever put some of it in the wrong place, the browser still runs
# nothing (script-src) and refuses to read text as markup (trusted types).
HEADERS = {
    "Content-Security-Policy": "; ".join(
        [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "connect-src 'self'",
            "img-src 'self' data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    ),
    "Referrer-Policy": "no-referrer",
    # Kept, but asked about each time: a page and a server of two versions would not understand each other.
    "Cache-Control": "no-cache",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _MEDIA_TYPES[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


_FILES = {path.name: _read(path) for path in Path(__file__).parent.iterdir() if path.suffix in _MEDIA_TYPES}


@get("/dashboard", include_in_schema=False)
async def dashboard(request: AnyRequest) -> Response[bytes]:
    return _answer(request, _FILES["index.html"])


@get("/dashboard/{name:str}", include_in_schema=False)
async def dashboard_file(request: AnyRequest, name: FromPath[str]) -> Response[bytes]:
    if name not in _FILES:
        raise NotFoundException(f"the dashboard has no file {name[:60]!r}")
    return _answer(request, _FILES[name])


def _answer(request: AnyRequest, file: _File) -> Response[bytes]:
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(b"", status_code=304, headers=headers, media_type=file.media_type)
    return Response(file.content, headers=headers, media_type=file.media_type)
