"""Access control: which clients, host names and web pages may call the API."""

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wan_orchestration.api.problems import Problem, to_response
from wan_orchestration.settings.service import ApiSettings

COOKIE = "wan_session"
"""The page's cookie in place of the token, because its video and image elements cannot send headers."""

PUBLIC_PATHS = {"/", "/healthz", "/session"}
"""Paths that need no token, besides those below /page/."""

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Access:
    """ASGI middleware: refuses requests that are not allowed, and adds security headers to every response."""

    def __init__(self, app: ASGIApp, api: ApiSettings) -> None:
        self.app, self.api = app, api
        self.token = api.token.get_secret_value() if api.token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                if self._from_allowed_origin(scope):
                    headers["cross-origin-resource-policy"] = "cross-origin"
            await send(message)

        try:
            self._check(scope)
        except Problem as problem:
            await to_response(problem)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self.token is None and not _loopback(scope):
            raise Problem(403, "the server has no WAN_API_TOKEN, so it answers only requests from its own machine")
        host = _host_name(headers.get("host", ""))
        if not self._known_host(host):
            # Another site could point its own host name to this address (DNS rebinding).
            raise Problem(400, f"host {host[:80]!r} is not a name of this server; see WAN_API_HOSTS")
        if not self._same_site(scope, headers) and not self._from_allowed_origin(scope):
            raise Problem(403, "requests from pages of other sites are refused; see WAN_API_CORS_ORIGINS")
        preflight = scope["method"] == "OPTIONS"
        if self.token is None or preflight or scope["path"] in PUBLIC_PATHS or scope["path"].startswith("/page/"):
            return
        if not self._authorized(headers):
            detail = "this server requires its token: send Authorization: Bearer TOKEN"
            raise Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})

    def _known_host(self, host: str) -> bool:
        if host in ("localhost", "127.0.0.1", "::1") or host in self.api.hosts:
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        # Unlike a name, an address cannot be pointed elsewhere.
        return True

    def _same_site(self, scope: Scope, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin.partition("://")[2] == headers.get("host")
        # Links from other sites to the page are allowed.
        link = scope["method"] == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return link or headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _from_allowed_origin(self, scope: Scope) -> bool:
        return Headers(scope=scope).get("origin") in self.api.cors_origins

    def _authorized(self, headers: Headers) -> bool:
        assert self.token is not None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(token.strip(), self.token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, session(self.token))


def session(token: str) -> str:
    """The session cookie's value: derived from the token, but does not reveal it."""
    return hmac.digest(token.encode(), b"wan-orchestration session", hashlib.sha256).hex()


def is_token(api: ApiSettings, value: str) -> bool:
    """Whether a value is the server's token."""
    return api.token is not None and _equal(value, api.token.get_secret_value())


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())


def _loopback(scope: Scope) -> bool:
    """Whether the client connected to a loopback address or a Unix socket."""
    server = scope.get("server")
    if not server or server[1] is None:
        return True
    try:
        return ipaddress.ip_address(server[0]).is_loopback
    except ValueError:
        return server[0] == "localhost"


def _host_name(host: str) -> str:
    """The host in a Host header, without its port and without the brackets of IPv6."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
