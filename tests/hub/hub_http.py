"""The HTTP side of the test Hub: reads requests, finds the route, writes answers and errors in the Hub's form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `token` is what the client sent, None if nothing."""

    method: str
    path: str
    token: str | None
    body: bytes
    query: str = ""


class Refusal(Exception):
    """Becomes an HTTP error in the form that the real Hub gives it; a `message` that is JSON is sent as it is."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


Route = tuple[str, str, Callable[..., Any]]


def handler_for(server: Any, routes: list[Route]) -> type[BaseHTTPRequestHandler]:
    """Return the handler class that serves `routes` as methods of `server`."""

    class Handler(_Handler):
        hub = server
        table = [(method, re.compile(pattern), call) for method, pattern, call in routes]

    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Head and body leave together: sent apart, each answer would wait 40 ms for the client's acknowledgement.
    wbufsize = -1
    hub: Any
    table: list[tuple[str, re.Pattern[str], Callable[..., Any]]]

    def do_GET(self) -> None:
        request = self._read()
        fault = self.hub.take_fault(request.path)
        if fault is not None and not fault.lose_answer:
            if fault.status < 0:
                self.close_connection = True
                return
            self._write(fault.status, fault.body, {"Content-Type": fault.content_type})
            return
        try:
            with self.hub.lock:
                answer = self._dispatch(request)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        if fault is not None:
            self.close_connection = True
        elif isinstance(answer, tuple):
            self._write(200, answer[0], answer[1])
        else:
            self._write(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    do_HEAD = do_POST = do_PUT = do_GET

    def _read(self) -> Request:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        address = urlsplit(self.path)
        request = Request(self.command, address.path, token if scheme == "Bearer" else None, body, address.query)
        self.hub.requests.append(request)
        return request

    def _dispatch(self, request: Request) -> Any:
        if request.token not in (None, self.hub.token, self.hub.read_only_token):
            raise Refusal(401, "Invalid credentials in Authorization header")
        self.hub.watch(request)
        method = "GET" if request.method == "HEAD" else request.method
        for wanted, pattern, call in self.table:
            match = pattern.fullmatch(request.path)
            if match and wanted == method:
                parts = {name: unquote(text) for name, text in match.groupdict().items() if text is not None}
                return call(self.hub, request, **parts)
        raise Refusal(404, f"no such address: {request.method} {request.path}")

    def _refuse(self, refusal: Refusal) -> None:
        is_json = refusal.message.startswith("{")
        body = refusal.message if is_json else json.dumps({"error": refusal.message})
        headers = {"Content-Type": "application/json"}
        if not is_json:
            headers["X-Error-Message"] = refusal.message
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        self._write(refusal.status, body.encode(), headers)

    def _write(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the requests are in `HubServer.requests`."""
