"""What the tests of the stand-in stand on: a server in a thread, and a browser without a screen."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx2
from starlette.types import ASGIApp

from proxy.sandbox import Lifetimes, Organization, SandboxConfig, SandboxState
from proxy.sandbox.people import Person
from proxy.sandbox.run import address, listen, running

RECORDINGS = Path(__file__).parent / "recordings"
HOST = "localhost:3001"  # the recorded Logto's; what answers follows the Host that is asked for, not the port
CLIENT_ID = "3brou57d3pn17rx7ogxd1"
SECRET = "a-secret-for-these-tests-only-01"
CALLBACK = "http://localhost:3000/.postern/callback"
SIGNED_OUT = "http://localhost:3000/.postern/signed-out"
EVERYTHING = (
    "openid offline_access profile email identities roles custom_data urn:logto:scope:organizations "
    "urn:logto:scope:organization_roles"
)
RESOURCE = "https://api.example.test"
ORGANIZATION = "yaejrcggvkx6"

CONFIG = SandboxConfig(
    endpoint=f"http://{HOST}",
    client_id=CLIENT_ID,
    client_secret=SECRET,
    redirect_uris=(CALLBACK, "http://127.0.0.1:3000/.postern/callback"),
    post_logout_redirect_uris=(SIGNED_OUT,),
    backchannel_logout_session_required=True,
    id_token_claims=frozenset(
        {"custom_data", "identities", "roles", "organizations", "organization_data", "organization_roles"}
    ),
    resources={RESOURCE: {"read:things": ("ops",), "write:things": ("ops",)}},
    organizations=(Organization(ORGANIZATION, "Acme", "Acme Inc", {"org-admin": ("invite:member",)}),),
    lifetimes=Lifetimes(),
)


def recording(name: str) -> Any:
    """A recording of a real Logto."""
    return json.loads((RECORDINGS / f"{name}.json").read_text("utf-8"))


def recorded_people() -> dict[str, Person]:
    """The people of the recordings, with what the recorded Logto knew of them."""
    refreshed = recording("refresh")[0]["body"]["id_token"]["claims"]
    registered = recording("sign-in")["token"]["body"]["id_token"]["claims"]
    prepared = recording("endpoints")["userinfo"]["body"]
    alice, carol = _person(refreshed), _person(prepared)
    dave = _person(registered)
    dave.registered = False
    return {person.sub: person for person in (alice, carol, dave)}


def _person(claims: Mapping[str, Any]) -> Person:
    discord = claims["identities"]["discord"]
    roles: dict[str, tuple[str, ...]] = dict.fromkeys(claims["organizations"], ())
    for entry in claims["organization_roles"]:
        organization, _, role = entry.partition(":")
        roles[organization] += (role,)
    return Person(
        sub=claims["sub"],
        name=claims["name"],
        username=claims["username"],
        email=claims["email"],
        picture=claims["picture"],
        discord_id=discord["userId"],
        discord_username=claims["name"],
        discord_name=claims["name"],
        discord_details=discord["details"],
        roles=tuple(claims["roles"]),
        organization_roles=roles,
        custom_data=claims["custom_data"],
    )


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """Serve `app` from a thread with an event loop of its own; gives its base URL."""
    listener = listen("127.0.0.1", 0)
    url = address(listener)
    started, loops = threading.Event(), list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]()

    async def main() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        async with running(app, listener):
            started.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert started.wait(20)
        yield url
    finally:
        loop, stop = loops[0]
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)


@dataclass
class Stand:
    """A running stand-in Logto: where it listens, what it remembers."""

    url: str
    state: SandboxState

    def browser(self) -> Browser:
        """A fresh browser."""
        return Browser(self)


class Browser:
    """A browser without a screen: keeps cookies, follows nothing by itself."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.client = httpx2.Client(
            base_url=stand.url, headers={"host": HOST}, trust_env=False, follow_redirects=False, timeout=20
        )
        self.verifiers: dict[str, str] = {}  # by code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def get(self, url: str, **more: Any) -> httpx2.Response:
        """GET an address of the stand-in, whole or relative."""
        return self.client.get(url.removeprefix(f"http://{HOST}"), **more)

    def post(self, url: str, data: Mapping[str, Any] | None = None, **more: Any) -> httpx2.Response:
        """POST to it."""
        return self.client.post(url.removeprefix(f"http://{HOST}"), data=data, **more)

    def query(self, **changes: str | list[str] | None) -> tuple[dict[str, Any], str]:
        """An authorization request's parameters, and its verifier; None leaves a parameter out."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query: dict[str, Any] = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": CALLBACK,
            "scope": EVERYTHING,
            "state": secrets.token_urlsafe(16),
            "nonce": secrets.token_urlsafe(16),
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "prompt": "consent",
            "direct_sign_in": "social:discord",
        }
        query |= changes
        return {name: value for name, value in query.items() if value is not None}, verifier

    def authorize(self, **changes: str | list[str] | None) -> httpx2.Response:
        """Ask for authorization; the first answer."""
        query, _ = self.query(**changes)
        return self.get("/oidc/auth", params=query)

    def walk(self, answer: httpx2.Response, sub: str = "") -> dict[str, str]:
        """Follow `answer` until it leads to the application, choosing `sub` on the way; what the callback got."""
        for _ in range(20):
            location = answer.headers.get("location")
            if location is None:
                answer = self._on_page(answer, sub)
            elif location.startswith(("http://localhost:3000", "http://127.0.0.1:3000")):
                parts = urlsplit(location)
                return {name: values[0] for name, values in parse_qs(parts.query or parts.fragment).items()}
            else:
                answer = self.get(location)
        raise AssertionError("going in circles")

    def _on_page(self, answer: httpx2.Response, sub: str) -> httpx2.Response:
        form = forms(answer.text)
        if form is not None:
            return self.post(form["action"], form["fields"] | {"logout": "yes"})
        assert sub, answer.text
        assert "Who are you?" in answer.text, answer.text
        return self.get("/sandbox/discord/authorize", params={"person": sub})

    def sign_in(self, sub: str, **changes: str | list[str] | None) -> dict[str, str]:
        """The whole way to the callback; remembers the verifier of the code."""
        query, verifier = self.query(**changes)
        callback = self.walk(self.get("/oidc/auth", params=query), sub)
        if "code" in callback:
            self.verifiers[callback["code"]] = verifier
        return callback

    def token(self, form: Mapping[str, Any], auth: str = "basic") -> httpx2.Response:
        """POST to the token endpoint. auth: basic, post, none, "basic:wrong", "post:wrong", "basic:nosuch"."""
        return self.endpoint("/oidc/token", form, auth)

    def endpoint(self, path: str, form: Mapping[str, Any], auth: str = "basic") -> httpx2.Response:
        """POST to any endpoint that authenticates the client."""
        kind, _, flaw = auth.partition(":")
        client_id, secret = ("nosuch" if flaw == "nosuch" else CLIENT_ID), ("wrong" if flaw == "wrong" else SECRET)
        if kind == "basic":
            return self.post(path, form, auth=(client_id, secret))
        extra = {"client_id": client_id} | ({"client_secret": secret} if kind == "post" else {})
        return self.post(path, dict(form) | extra)

    def exchange(self, callback: Mapping[str, str], **more: str) -> dict[str, Any]:
        """Exchange the code of a callback; the tokens."""
        answer = self.token(self.code_form(callback["code"]) | more)
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def code_form(self, code: str) -> dict[str, str]:
        """The form that exchanges `code`."""
        form = {"grant_type": "authorization_code", "code": code, "redirect_uri": CALLBACK}
        return form | {"code_verifier": self.verifiers[code]}

    def tokens(self, sub: str, **changes: str | list[str] | None) -> dict[str, Any]:
        """Sign in and exchange: the tokens."""
        return self.exchange(self.sign_in(sub, **changes))

    def refresh(self, refresh_token: str, **more: str) -> httpx2.Response:
        """Refresh."""
        return self.token({"grant_type": "refresh_token", "refresh_token": refresh_token} | more)

    def userinfo(self, access_token: str) -> httpx2.Response:
        """Ask userinfo."""
        return self.get("/oidc/me", headers={"authorization": f"Bearer {access_token}"})

    def sign_out(self) -> dict[str, str]:
        """end_session, confirmed."""
        return self.walk(
            self.get("/oidc/session/end", params={"client_id": CLIENT_ID, "post_logout_redirect_uri": SIGNED_OUT})
        )


def forms(text: str) -> dict[str, Any] | None:
    """The form of a page that submits itself: action, id, hidden fields."""
    found = re.search(r"<form([^>]*)>", text)
    if found is None:
        return None
    attributes = {name: html.unescape(value) for name, value in re.findall(r'([\w.]+)="([^"]*)"', found[1])}
    hidden = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', text)
    fields = {html.unescape(name): html.unescape(value) for name, value in hidden}
    return {"action": attributes["action"], "id": attributes.get("id"), "fields": fields}
