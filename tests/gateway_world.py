"""The gateway app with everything real around it but Logto: settings, routes, gate, store in memory, pages.

Requests are bytes read by the real parser and judged by the real gate; Logto is a stand-in object that says what the test
wants, and remembers what it was asked.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit

import httpx2

from proxy.app_passwords import AppPasswords
from proxy.claims import Grant, Identity, Tokens
from proxy.forwarding import parse_address
from proxy.gate import Gate
from proxy.gateway import create_app
from proxy.http1 import read_request
from proxy.identity import Begun, Finished, RelyingParty
from proxy.pages import Pages
from proxy.password_store import IDLE, LIFETIME, MemoryPasswords
from proxy.redirects import ReturnPaths
from proxy.routes import RouteTable
from proxy.session import MemoryStore, SessionStore
from proxy.settings import Settings, load
from proxy.verdict import Call, Verdict

NAVIGATE = {
    "Accept": "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Site": "none",
}
FETCH = {"Accept": "*/*", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty", "Sec-Fetch-Site": "same-origin"}

PUBLIC = "https://apps.example.com"
LOGTO = "https://auth.example.com"
ROUTES = """
[[route]]
name = "wiki"
upstream = "http://127.0.0.1:9"

[[route]]
name = "admin"
path = "/admin"
upstream = "http://127.0.0.1:9"
allow = [{ roles = ["ops"] }]

[[route]]
name = "blocked"
path = "/blocked"
upstream = "http://127.0.0.1:9"
deny = [{ users = ["ada"] }]

[[route]]
name = "inside"
path = "/inside"
upstream = "http://127.0.0.1:9"
allow = [{ networks = ["10.0.0.0/8"] }]

[[route]]
name = "open"
path = "/open"
upstream = "http://127.0.0.1:9"
allow = "everyone"
"""
ADA = Identity(sub="ada", username="ada", name="Ada Lovelace", email="ada@example.com", roles=("editors",))
TOKENS = Tokens(id_token="id.token.secret", access_token="access-secret", access_expires_at=9e9, refresh_token="rt")


def settings_for(
    folder: Path, *, public_url: str = PUBLIC, session: str = "", routes: str = ROUTES, **environ: str
) -> Settings:
    """Settings as a file would give them."""
    file = folder / "postern.toml"
    file.write_text(
        f'public_url = "{public_url}"\nsecret = ["{"s" * 40}"]\n'
        f'[logto]\nendpoint = "{LOGTO}"\napp_id = "app"\napp_secret = "app-secret"\n'
        f"[session]\n{session}\n{routes}",
        "utf-8",
    )
    return load(file, environ)


def grant_for(identity: Identity = ADA, tokens: Tokens = TOKENS) -> Grant:
    return Grant(identity=identity, tokens=tokens, sid=None, signed_in_at=1_700_000_000.0)


@dataclass
class FakeLogto:
    """The relying party's interface. Whatever is an exception is raised; `hang` never returns."""

    finished: Finished | Exception | None = None
    begin_error: Exception | None = None
    sign_out: str | Exception = LOGTO + "/oidc/session/end?id_token_hint=x"
    check_error: Exception | None = None
    hang: bool = False
    begun: list[dict[str, Any]] = field(default_factory=list)
    finishes: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    revoked: list[Tokens] = field(default_factory=list)
    hints: list[Tokens | None] = field(default_factory=list)
    checks: int = 0

    async def begin(self, return_to: str, **extra: str | None) -> Begun:
        if self.begin_error is not None:
            raise self.begin_error
        self.begun.append({"return_to": return_to, **{key: value for key, value in extra.items() if value is not None}})
        number = len(self.begun)
        return Begun(f"{LOGTO}/oidc/auth?state={number}", f"postern_attempt_{number}=sealed; Path=/.postern/callback")

    async def finish(self, query: str, sent: Mapping[str, str]) -> Finished:
        self.finishes.append((query, dict(sent)))
        if isinstance(self.finished, Exception):
            raise self.finished
        assert self.finished is not None
        return self.finished

    def stale_attempts(self, sent: Mapping[str, str]) -> list[str]:
        return [f"{name}=; Max-Age=0" for name in sent if name.endswith("_stale")]

    async def revoke(self, tokens: Tokens) -> None:
        await asyncio.sleep(0)
        self.revoked.append(tokens)

    async def sign_out_url(self, tokens: Tokens | None, state: str | None = None) -> str:
        assert state is None
        self.hints.append(tokens)
        if self.hang:
            await asyncio.Event().wait()
        if isinstance(self.sign_out, Exception):
            raise self.sign_out
        return self.sign_out

    async def check(self) -> str:
        self.checks += 1
        if self.hang:
            await asyncio.Event().wait()
        if self.check_error is not None:
            raise self.check_error
        return "ok"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: httpx2.Headers
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def location(self) -> str:
        return self.headers["location"]

    @property
    def set_cookies(self) -> list[str]:
        return self.headers.get_list("set-cookie")

    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        return self.json()


class World:
    """One gateway and whoever asks it. A context manager: it holds an event loop for its requests."""

    def __init__(self, settings: Settings, store: SessionStore | None = None) -> None:
        self.settings = settings
        self.logto = FakeLogto()
        self.store = store or MemoryStore(idle=settings.session.idle, lifetime=settings.session.lifetime)
        routes = RouteTable.from_settings(settings)
        self.gate = Gate(settings, routes, self.store)
        public_host = urlsplit(settings.public_url).hostname or ""
        domain = settings.session.cookie.domain
        self.returns = ReturnPaths(
            settings.public_url,
            lambda host: host == public_host or (domain != "" and host.endswith("." + domain)),
            settings.prefix,
        )
        self.pages = Pages.from_settings(settings)
        self.passwords = AppPasswords(settings, MemoryPasswords(idle=IDLE, lifetime=LIFETIME))
        self.app = create_app(
            settings,
            self.gate,
            self.store,
            cast("RelyingParty", self.logto),
            self.pages,
            self.returns,
            passwords=self.passwords,
        )
        self.runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self.runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.__exit__(kind, error, trace)

    def sign_in(self, identity: Identity = ADA, tokens: Tokens = TOKENS) -> str:
        """A session straight into the store; returns the Cookie field that carries it."""
        from proxy.session import cookie_name

        _, value = self.runner.run(
            self.store.create(grant_for(identity, tokens), browser="Test/1.0", address="192.0.2.1")
        )
        return f"{cookie_name(self.settings)}={value}"

    def get(self, path: str, headers: Mapping[str, str] = NAVIGATE, **more: str) -> Answer:
        return self.request("GET", path, {**headers, **{name.replace("_", "-"): value for name, value in more.items()}})

    def post(self, path: str, headers: Mapping[str, str] = NAVIGATE, **more: str) -> Answer:
        return self.request("POST", path, {**headers, **{name.replace("_", "-"): it for name, it in more.items()}})

    def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        verdict: Verdict | None = None,
        client: str = "192.0.2.1",
        scheme: str | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Ask for `path`, at the public host unless `headers` name another; `verdict` overrules the gate."""
        return self.runner.run(
            self.ask(method, path, headers, verdict=verdict, client=client, scheme=scheme, body=body)
        )

    async def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        verdict: Verdict | None = None,
        client: str = "192.0.2.1",
        scheme: str | None = None,
        body: bytes = b"",
    ) -> Answer:
        given = {"Host": urlsplit(self.settings.public_url).netloc, **headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        read = read_request(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        assert read is not None
        head = read[0]
        host = given["Host"]
        scheme = scheme or urlsplit(self.settings.public_url).scheme
        if verdict is None:
            verdict = await self.gate.judge_later(head, host, parse_address(client))
        call = Call(verdict, "request-1", client, scheme, host, f"{scheme}://{host}{head.target.decode('latin-1')}")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": scheme,
            "path": unquote(head.path.decode("latin-1")),
            "raw_path": head.path,
            "query_string": head.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in head.fields],
            "client": (client, 0),
            "server": None,
            "state": {},
            "postern": call,
        }
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        start, *bodies = messages
        body = b"".join(message.get("body", b"") for message in bodies)
        return Answer(start["status"], httpx2.Headers(start["headers"]), body)
