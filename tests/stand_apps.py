"""Apps that people put behind the gateway, as far as it matters here: who somebody is to them, and whom they let pass.

Each does with a request what the app's documentation and published source say, no more; docs/apps has the links. They are
deliberately as trusting as the real ones.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.relay_world import Upstream

TRUSTED = "127.0.0.1"  # the address that apps with a list of proxies have in it: where the gateway comes from
KEY = "0123456789abcdef0123456789abcdef"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as an app sees it. Fields are Latin-1, as most servers read them."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    peer: str

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    def every(self, name: str) -> list[str]:
        return [value for known, value in self.fields if known.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        return next(iter(self.every(name)), None)

    def query(self, name: str) -> str | None:
        return next(iter(parse_qs(urlsplit(self.target).query).get(name, ())), None)

    def cgi(self, name: str) -> str:
        """A field as CGI and what is built like it have it: `_` and `-` are the same, in any case (RFC 3875 4.1.18)."""
        found = [value for known, value in self.fields if known.upper().replace("-", "_") == name]
        return found[-1] if found else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an app says: a status, JSON, and fields besides."""

    status: int = 200
    body: Any = None
    fields: tuple[tuple[bytes, bytes], ...] = ()


App = Callable[[Asked], Answer]
OPENED = Answer(101, fields=((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")))


def serve(upstream: Upstream, app: App) -> None:
    """Have `upstream` answer as `app`. A WebSocket is closed as soon as it is open."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await upstream.head(reader)
            await upstream.body(reader, head)
            line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
            method, target, _ = line.split(" ")
            pairs = (one.partition(": ") for one in lines)
            fields = tuple((name, value) for name, _, value in pairs)
            answer = app(Asked(method, target, fields, writer.get_extra_info("peername")[0]))
            writer.write(_written(answer))
            await writer.drain()
            if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
                return

    upstream.script = script


def _written(answer: Answer) -> bytes:
    fields = b"".join(b"%b: %b\r\n" % pair for pair in answer.fields)
    start = b"HTTP/1.1 %d Answer\r\n%b" % (answer.status, fields)
    if answer.status == HTTPStatus.SWITCHING_PROTOCOLS:
        return start + b"\r\n"
    body = json.dumps(answer.body).encode()
    return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (start, len(body), body)


@dataclass(slots=True)
class OpenWebUI:
    """https://docs.openwebui.com/features/sso, with the environment of the page; groups as it was told last."""

    people: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __call__(self, asked: Asked) -> Answer:
        match asked.method, asked.path:
            case "GET", "/health":
                return Answer(body={"status": True})
            case "POST", "/api/v1/auths/signin":
                return self._sign_in(asked)
            case "GET", "/api/v1/auths/":
                return self._who(asked)
            case "GET", "/api/v1/auths/signout":
                return Answer(body={"status": True, "redirect_url": "/.postern/sign-out"})
        return Answer(404)

    def _sign_in(self, asked: Asked) -> Answer:
        email = asked.get("X-Forwarded-Email")
        if email is None:
            return Answer(400, {"detail": "invalid trusted header"})
        email = email.lower()
        name = unquote(asked.get("X-Forwarded-Name") or email, encoding="utf-8")
        person = self.people.setdefault(email, {"email": email, "name": name, "groups": []})
        groups = [group.strip() for group in (asked.get("X-Forwarded-Groups") or "").split(",") if group.strip()]
        if groups:
            person["groups"] = groups
        return Answer(body=person)

    def _who(self, asked: Asked) -> Answer:
        token = (asked.get("Authorization") or "").removeprefix("Bearer ")
        trusted = (asked.get("X-Forwarded-Email") or "").lower()
        if token not in self.people or (trusted and trusted != token):
            return Answer(401, {"detail": "User mismatch. Please sign in again."})
        return Answer(body=self.people[token])


def freshrss(asked: Asked) -> Answer:
    """https://freshrss.github.io/FreshRSS/en/admins/09_AccessControl.html: people come by a TRUSTED_PROXY, and get an account."""
    user = (asked.cgi("REMOTE_USER") or asked.cgi("X_WEBAUTH_USER")) if asked.peer == TRUSTED else ""
    if asked.path.startswith("/api/"):
        key = asked.get("Authorization") or ""
        return Answer(body={"user": key.removeprefix("GoogleLogin auth=").partition("/")[0], "header": user})
    if not re.fullmatch(r"[0-9a-zA-Z_][0-9a-zA-Z_.@-]{1,38}", user):
        return Answer(403)
    return Answer(body={"user": user})


@dataclass(slots=True)
class FileBrowser:
    """https://filebrowser.org/authentication.html, `--auth.method=proxy`: accounts are made for whoever the header names."""

    accounts: list[str] = field(default_factory=list)

    def __call__(self, asked: Asked) -> Answer:
        if asked.path in {"/health", "/share/AbC", "/static/app.js"} or asked.path.startswith("/api/public/share/"):
            return Answer(body={"status": "OK"})
        if (asked.method, asked.path) == ("POST", "/api/login"):
            user = asked.get("Remote-User") or ""  # an empty name is a name
            self.accounts.append(user)
            return Answer(body={"user": user})
        return Answer(401)


def home_assistant(asked: Asked) -> Answer:
    """homeassistant/components/http/forwarded.py, and hass-auth-header where people sign in."""
    remote, scheme = asked.peer, "http"
    chain = [part.strip() for value in asked.every("X-Forwarded-For") for part in value.split(",")]
    if chain:
        schemes = [part.strip() for value in asked.every("X-Forwarded-Proto") for part in value.split(",")]
        if asked.peer != TRUSTED or len(schemes) not in {1, len(chain)} or "" in schemes:
            return Answer(400)
        try:
            addresses = [str(ip_address(part)) for part in reversed(chain)]
        except ValueError:
            return Answer(400)
        remote = next((one for one in addresses if one != TRUSTED), addresses[-1])
        scheme = schemes[0]
    if asked.path.startswith("/api/webhook/"):
        return Answer(body={"remote": remote, "scheme": scheme})
    if asked.path == "/api/websocket":  # asks for a token in its first message
        return OPENED
    if asked.path.startswith("/auth/login_flow"):
        user = (asked.get("X-Forwarded-Preferred-Username") or "").casefold()
        return Answer(body={"user": user, "remote": remote, "scheme": scheme}) if user else Answer(400)
    return Answer(200 if asked.get("Authorization") == f"Bearer {KEY}" else 401, {"remote": remote})


def servarr(asked: Asked) -> Answer:
    """Sonarr and its kin, AuthenticationMethod External: Startup.cs, ApiKeyAuthenticationHandler.cs; https://wiki.servarr.com."""
    if asked.path == "/ping":
        return Answer(body={"status": "OK"})
    if asked.path.startswith(("/api/", "/feed/")):
        bearer = (asked.get("Authorization") or "").removeprefix("Bearer ")
        return Answer(200 if (asked.query("apikey") or asked.get("X-Api-Key") or bearer) == KEY else 401)
    if asked.path == "/logout":
        return Answer(302, fields=((b"Location", b"/"),))
    if asked.path == "/initialize.json":  # whoever gets the interface gets the key
        return Answer(body={"apiKey": KEY})
    if asked.path == "/signalr/messages":
        return OPENED if asked.query("access_token") == KEY else Answer(401)
    return Answer(body="the interface")


def code_server(asked: Asked) -> Answer:
    """coder/code-server with `--auth none`: src/node/routes/index.ts, authenticateOrigin in src/node/http.ts."""
    if asked.path == "/healthz":
        return Answer(body={"status": "alive"})
    if asked.path in {"/login", "/logout"}:
        return Answer(302, fields=((b"Location", b"./"),))
    if asked.get("Upgrade") is not None:
        host = asked.get("X-Forwarded-Host") or asked.get("Host")
        return OPENED if urlsplit(asked.get("Origin") or "").netloc in {"", host} else Answer(403)
    return Answer(body="an editor")


def streamlit(asked: Asked) -> Answer:
    """streamlit/web/server: the WebSocket's Origin against Host, and who is there by the fields that opened it."""
    if asked.path == "/_stcore/health":
        return Answer(body="ok")
    if asked.path == "/_stcore/stream":
        same = urlsplit(asked.get("Origin") or "").netloc in {"", asked.get("Host")}
        return OPENED if same else Answer(403)
    return Answer(body={"user": asked.get("X-Forwarded-User")})


def gradio(asked: Asked) -> Answer:
    """gradio/route_utils.py, get_root_url: pages call back to where the proxy says that browsers see them."""
    host, scheme = asked.get("X-Forwarded-Host"), asked.get("X-Forwarded-Proto")
    return Answer(body={"root": f"{scheme}://{host}", "user": asked.get("X-Forwarded-User")})
