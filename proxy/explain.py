"""`postern explain`: which route and which rule decide about a URL, and which headers the app would get."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from proxy.access_tokens import read_access_token
from proxy.assertion import HEADER
from proxy.bearer import OTHER_API, session_of
from proxy.claims import ApiToken, Tokens, identity_from_claims
from proxy.credentials import Rejected
from proxy.discord import Discord
from proxy.forwarding import Forwarding, parse_address
from proxy.gate import Gate, Guilds
from proxy.headers import RouteHeaders
from proxy.http1 import RequestHead, read_request
from proxy.presets import PRESETS
from proxy.routes import Route, RouteTable
from proxy.serve import route_headers
from proxy.session import MemoryStore, Session
from proxy.settings import Settings
from proxy.verdict import Verdict

_ASSERTION: Final = re.compile(rb"(?m)^(%b: )[^\r\n]*" % re.escape(HEADER))


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict on a request, and the head that the app would get (None when it gets nothing)."""

    verdict: Verdict
    head: bytes | None


def preset_of(settings: Settings, route: Route) -> str | None:
    """What the preset of a route has brought into it, where the route says nothing itself; None without one."""
    given = settings.route[(route.around or route).index]
    if given.preset is None:
        return None
    preset, base = PRESETS[given.preset], given.path.rstrip("/")
    brought = {
        "sets": [name for name, template in preset.headers.items() if given.headers.set.get(name) == template],
        "takes off": [name for name in preset.remove if name in given.headers.remove],
        "leads on from": [path for path in given.logout if path.removeprefix(base) in preset.logout],
        "bounds": [name for name in preset.login_cookies if name in given.login_cookies],
        "opens": [base + path for word in given.open for path in preset.open.get(word, ())],
        "could open": [word for word in preset.open if word not in given.open],
    }
    return "; ".join([given.preset, *(f"{verb} {', '.join(names)}" for verb, names in brought.items() if names)])


async def explain_asking(
    settings: Settings, url: str, method: str, claims: Mapping[str, Any] | None, client: str = "127.0.0.1"
) -> Explanation:
    """As `explain`, asking Discord who is in a guild where that decides."""
    if settings.discord is None:
        return explain(settings, url, method, claims, client)
    owned = frozenset(guild for route in RouteTable.from_settings(settings).routes for guild in route.policy.owned)
    discord = Discord(settings.discord, owned)
    try:
        explanation = explain(settings, url, method, claims, client, discord)
        session, route = explanation.verdict.session, explanation.verdict.route
        user = session.identity.discord_id if session is not None else None
        if user is not None and route is not None and route.policy.guilds:
            await discord.learn(route.policy.guilds, user)
            explanation = explain(settings, url, method, claims, client, discord)
        return explanation
    finally:
        await discord.close()


def explain(
    settings: Settings,
    url: str,
    method: str,
    claims: Mapping[str, Any] | None,
    client: str = "127.0.0.1",
    guilds: Guilds | None = None,
) -> Explanation:
    """Judge `method` on `url` for the person that `claims` describe (None: nobody is signed in), as the gate would.

    `auth_time` among the claims says when the person signed in, else it was just now; claims with a `client_id` are those of a
    program's access token, signed and valid now. `guilds` knows who is in which.
    Raises ValueError when the URL or the claims are not usable, MalformedRequest when the relay would refuse the request.
    """
    parts = urlsplit(url)
    if not parts.scheme or not parts.netloc:
        raise ValueError("the URL must be absolute, like https://apps.example.com/path")
    head = _head(url, method, parts.netloc)
    store = MemoryStore(idle=settings.session.idle, lifetime=settings.session.lifetime)
    routes = RouteTable.from_settings(settings)
    gate = Gate(settings, routes, store, guilds)
    match = gate.match(head, parts.netloc)
    if isinstance(match, Verdict):
        return Explanation(match, None)
    session = _known_by(settings, claims, match.route) if claims is not None else None
    verdict = gate.decide(head, parts.netloc, parse_address(client), match, session)
    if verdict.status or verdict.route is None:
        return Explanation(verdict, None)
    headers = route_headers(settings, routes)[verdict.route]
    # A real assertion would let whoever reads this over a shoulder be that person to the app, for minutes.
    block = _ASSERTION.sub(rb"\1(a signed token)", headers.identity_block(verdict.identity, _tokens(verdict, headers)))
    forwarding = Forwarding(())
    origin = forwarding.origin(head, forwarding.peer(client), parts.scheme.encode())
    return Explanation(verdict, headers.to_upstream(head, origin, block, b"example"))


def _head(url: str, method: str, netloc: str) -> RequestHead:
    target = url.partition("://")[2][len(netloc) :] or "/"
    if not target.startswith("/"):
        target = "/" + target
    text = f"{method} {target} HTTP/1.1\r\nHost: {netloc}\r\nAccept: text/html\r\n\r\n"
    found = read_request(text.encode("utf-8", "surrogateescape"))
    if found is None:
        raise ValueError("the URL cannot be put into a request")
    return found[0]


def _known_by(settings: Settings, claims: Mapping[str, Any], route: Route | None) -> Session | Rejected | None:
    """Whom the gate would see: a person by a session, a program by its token, where the route takes one."""
    if "client_id" not in claims:
        return _session(settings, claims)
    programs = route.programs if route is not None else None
    if programs is None or not programs.audiences:
        return None
    now = int(time.time())
    valid = {"aud": sorted(programs.audiences), **claims, "iss": settings.logto.issuer, "iat": now, "exp": now + 3600}
    valid.pop("nbf", None)
    made = read_access_token(valid, issuer=settings.logto.issuer, now=now)
    return OTHER_API if programs.audiences.isdisjoint(made.audiences) else session_of(made, "example", now)


def _tokens(verdict: Verdict, headers: RouteHeaders) -> Tokens | None:
    """Words in the place of Logto's tokens, which only the gateway has, and only for people with a session."""
    if verdict.session is None or verdict.session.via != "cookie":
        return None
    for_apis = {audience: ApiToken(f"(an access token for {audience})", 0.0, 0.0) for audience in headers.audiences}
    return Tokens("(the ID token)", "(the access token)", 0.0, None, for_apis)


def _session(settings: Settings, claims: Mapping[str, Any]) -> Session:
    now = time.time()
    return Session(
        id="example",
        identity=identity_from_claims(claims),
        sid=None,
        created_at=now,
        seen_at=now,
        expires_at=now + settings.session.lifetime,
        signed_in_at=float(told) if isinstance(told := claims.get("auth_time"), int | float) else now,
        browser="",
        address="",
    )
