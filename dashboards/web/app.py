"""The dashboard as a web application: read-only, everything from this machine, nothing for other hosts' pages."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from plotly.offline import get_plotlyjs
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

from fewstep.dashboards.web.places import Places
from fewstep.dashboards.web.render import Pages
from fewstep.dashboards.web.routes import routes
from fewstep.errors import ConfigurationError, FewstepError

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def make_app(folders: Sequence[Path], hosts: Sequence[str] = LOOPBACK) -> FastAPI:
    """The application for studies beneath `folders`; requests that name another host than `hosts` are refused.

    A page elsewhere that lets a browser think this is its own server (DNS rebinding) therefore reads nothing.
    ConfigurationError where a folder is not there.
    """
    places, pages = Places(list(folders)), Pages()
    # The pages of FastAPI's own documentation would load scripts from elsewhere.
    app = FastAPI(title="fewstep dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.places = places
    app.include_router(routes(places, pages))
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    script = get_plotlyjs().encode()

    @app.get("/plotly.js")
    def plotly() -> Response:
        return Response(script, media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.exception_handler(FewstepError)
    def told(request: Request, error: FewstepError) -> Response:
        status = 400 if isinstance(error, ConfigurationError) else 503
        return pages.page("error", status, title="This cannot be shown", message=" ".join(str(error).split()))

    @app.exception_handler(OSError)
    def unreadable(request: Request, error: OSError) -> Response:
        message = f"cannot read {error.filename or 'a file'}: {error.strerror or error}"
        return pages.page("error", 503, title="This cannot be read", message=message)

    @app.exception_handler(RequestValidationError)
    def misspelled(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = f"{first['loc'][-1]}={first.get('input')!r}"
        return pages.page("error", 400, title="This address is not right", message=f"{where:.80}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def missing(request: Request, error: HTTPException) -> Response:
        message = (
            str(error.detail) if error.status_code != 404 or error.detail != "Not Found" else "There is no such page."
        )
        return pages.page("error", error.status_code, title=f"Not shown ({error.status_code})", message=message)

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app
