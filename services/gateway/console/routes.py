"""`GET /`: the console, for people. The page holds no secret; it asks for a key and keeps it in the tab."""

from importlib import resources

from fastapi import APIRouter
from starlette.responses import Response

from bellhop.web.strict_json import AnyQueryRoute

router = APIRouter(route_class=AnyQueryRoute, tags=["console"])

# Everything on the page is its own: nothing is loaded from elsewhere, and no other page may frame it.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self';"
    " img-src data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
_FILES = resources.files("services.gateway") / "console"


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """Return the page."""
    return _file("console.html", "text/html")


@router.get("/console.js", include_in_schema=False)
async def script() -> Response:
    """Return its script."""
    return _file("console.js", "text/javascript")


def _file(name: str, media_type: str) -> Response:
    headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
    return Response((_FILES / name).read_bytes(), 200, headers, media_type)
