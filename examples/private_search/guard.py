"""Who may talk to the page's server, and what the browser may do with what it sends.

The page listens on the loopback address, where every web site that is open in the browser, and
every user of the machine, can reach it as well. So each request needs the server's own name (a site
that points its name at 127.0.0.1 sends its own), comes from the page itself, and has the secret
that stood in the printed address. The secret is kept in a cookie for a path that nobody can guess:
cookies do not tell ports apart, and a server at another port must not be sent it.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Scripts, styles and data come from this server only, nothing goes anywhere else, and text never
# becomes markup.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_COOKIE = "private-search"
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-dns-prefetch-control": "off",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: Host, Origin and secret of each request; headers of each answer."""

    def __init__(self, app: ASGIApp, port: int, secret: str) -> None:
        """Guard an application.

        Args:
            app: The application.
            port: It listens on.
            secret: Given once in the address, then kept in a cookie that no script can read.
        """
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        self._secret = secret
        self.room = f"/{secrets.token_urlsafe(12)}/"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the reason why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer({**scope, "path": scope["path"][len(self.room) - 1 :]}, receive, guarded)

    def _refusal(self, request: Request) -> Response | None:
        host, origin = request.headers.get("host"), request.headers.get("origin")
        own = origin == f"http://{host}" or (origin is None and request.method != "POST")
        site = request.headers.get("sec-fetch-site", "none")
        if host not in self._hosts or not own or site not in ("none", "same-origin"):
            return PlainTextResponse("Only the page itself may ask, by this server's name.", 403)
        path = request.scope["path"]
        if path == "/" and self._is_secret(request.query_params.get("secret", "")):
            # Out of the address, so that it is in no history and on no screenshot.
            entered = RedirectResponse(self.room, 303)
            entered.set_cookie(
                _COOKIE, self._secret, path=self.room, httponly=True, samesite="strict"
            )
            return entered
        if not path.startswith(self.room) or not self._is_secret(request.cookies.get(_COOKIE, "")):
            return PlainTextResponse("Open the address that the terminal shows.", 401)
        return None

    def _is_secret(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._secret.encode())
