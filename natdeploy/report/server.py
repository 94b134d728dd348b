"""A small web server for pages that are only looked at: it answers GET and HEAD, and takes nothing from anybody.

A local server can be attacked by any other page that the same browser shows. So a request has to name this server as its host,
which one that was led here by the name of another (DNS rebinding) does not; answers may not be embedded or read by other sites; and
what a request names is looked up, never made into a path.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from natdeploy.errors import NatdeployError, UsageError
from natdeploy.logs import ROOT
from natdeploy.report.document import SERVED_POLICY, document
from natdeploy.report.markup import element

_HEADERS = {
    "Content-Security-Policy": SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    # A browser asks every time, and is told in a few bytes that it has the page already.
    "Cache-Control": "no-cache",
}
_IDLE_S = 30.0
_METHODS = ("GET", "HEAD")


@dataclass(frozen=True)
class Answer:
    """What a request gets.

    Attributes:
        body: of the answer.
        type: media type of it.
        status: of HTTP.
    """

    body: bytes
    type: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK

    @property
    def tag(self) -> str:
        """The same for equal bodies (ETag)."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Request:
    """What a browser asks for.

    Attributes:
        path: as it was sent, percent-encoded.
        query: decoded.
    """

    path: str
    query: dict[str, list[str]]


Site = Callable[[Request], Answer]


def said(status: HTTPStatus, sentence: str) -> Answer:
    """A page of one sentence."""
    body = element("main", element("h1", status.phrase), element("p", sentence), element("p", element("a", "all runs", href="/")))
    return Answer(document(status.phrase, body, {}, {}, served=True).encode(), status=status)


def open_server(site: Site, host: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound and listens; `serve_forever` answers, each request in a thread of its own.

    Args:
        site: what to answer to a GET.
        host: address or name to listen on.
        port: 0 takes a free one.

    Raises:
        UsageError: the port is in use or needs rights, or there is no such address on this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"there is no address {host}; give --host an address of this machine, such as 127.0.0.1") from error
    handler = type("Handler", (_Handler,), {"site": staticmethod(site), "names": _names(host)})
    kind = type("Server", (_Server,), {"address_family": family})
    try:
        server: ThreadingHTTPServer = kind(address[:2], handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"port {port} of {host} cannot be listened on ({reason}); choose another one with --port") from error
    return server


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _names(host: str) -> frozenset[str]:
    """What a request may call this server, beside its addresses, which no name server of somebody else's can stand for."""
    own = {host.lower(), "localhost"}
    return frozenset(own if is_loopback(host) else {*own, socket.gethostname().lower(), socket.getfqdn().lower()})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Of one connection; the others go on."""
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, ConnectionError | TimeoutError) else logging.ERROR
        ROOT.log(level, "%s was not answered (%s: %s)", client_address, type(error).__name__, error)
        ROOT.debug("details", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection. The standard library calls its methods by name."""

    site: Site
    names: frozenset[str]
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S

    def parse_request(self) -> bool:
        """Answers at once what only looking does not ask for, or what is meant for another server, and ends the connection."""
        if not super().parse_request():
            return False
        if self.command not in _METHODS:
            self._end(said(HTTPStatus.METHOD_NOT_ALLOWED, "This server only shows: it answers GET and HEAD."))
        elif not self._is_meant():
            self._end(said(HTTPStatus.MISDIRECTED_REQUEST, "This server goes by another name; use the address that it printed."))
        else:
            return True
        return False

    def _end(self, answer: Answer) -> None:
        self.close_connection = True
        self._send(answer, {"Allow": ", ".join(_METHODS), "Connection": "close"})

    def _is_meant(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        try:
            (host,) = [urlsplit(f"//{each}").hostname for each in hosts]
            if host in self.names:
                return True
            ipaddress.ip_address(host or "")
        except ValueError:
            return False
        return True

    def do_GET(self) -> None:
        try:
            parts = urlsplit(self.path)
            request = Request(parts.path, parse_qs(parts.query))
        except ValueError:
            self._end(said(HTTPStatus.BAD_REQUEST, "That is no address."))
            return
        try:
            answer = self.site(request)
        except NatdeployError as error:
            answer = said(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}.")
        self._send(answer, {})

    do_HEAD = do_GET  # noqa: N815 (the standard library's name)

    def _send(self, answer: Answer, further: dict[str, str]) -> None:
        known = answer.status == HTTPStatus.OK and self.headers.get("If-None-Match") == answer.tag
        body = b"" if known else answer.body
        self.send_response(HTTPStatus.NOT_MODIFIED if known else answer.status)
        for name, value in {**_HEADERS, "Content-Type": answer.type, "ETag": answer.tag, **further}.items():
            self.send_header(name, value)
        if not known:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "natdeploy"

    def log_message(self, format: str, *values: object) -> None:
        ROOT.debug(f"{self.address_string()} {format}", *values)
