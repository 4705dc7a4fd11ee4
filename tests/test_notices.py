"""Back-channel logouts and webhooks, sent to the gateway app: what ends sessions, and what does not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest

from proxy.claims import Grant, Identity, Tokens
from proxy.errors import StoreUnavailable
from proxy.gate import Gate
from proxy.gateway import create_app
from proxy.id_tokens import LEEWAY
from proxy.identity import RelyingParty
from proxy.logout_tokens import EVENT
from proxy.notices import BODY_BYTES
from proxy.pages import Pages
from proxy.redirects import ReturnPaths
from proxy.routes import RouteTable
from proxy.session import MemoryStore
from proxy.verdict import OWN, Call
from tests.forgeries import Forge, after_signing, by_hmac, by_stranger, forge, public_pem, swapped_payload, unsigned
from tests.identity_bench import RING, settings
from tests.lying_provider import CLIENT_ID, CLIENT_SECRET, KEYS, LyingProvider, encoded, oauth_error, sign

KEY = "MbvTmIiwf40fL1BXiPW8a3bppCYIyiuA"
FORM = {"content-type": "application/x-www-form-urlencoded"}
TOKENS = Tokens("id.token.x", "access", 9e9, "refresh")
LOGOUT = "/.postern/backchannel-logout"
HOOK = "/.postern/hooks/logto"


class Bench:
    """A gateway app, the provider it trusts, and who is signed in: ada twice under two sids, bob once."""

    def __init__(self, logto: LyingProvider, key: str = KEY) -> None:
        self.logto = logto
        logto.now = time.time()
        self.settings = settings(logto.url, **({"LOGTO__WEBHOOK_KEY": key} if key else {}))
        self.store = MemoryStore(idle=3600, lifetime=86400, clock=lambda: self.logto.now)
        self.rp = RelyingParty(self.settings, RING, self.store.once, clock=lambda: self.logto.now)
        routes = RouteTable.from_settings(self.settings)
        returns = ReturnPaths(self.settings.public_url, routes.knows, self.settings.prefix)
        gate = Gate(self.settings, routes, self.store)
        app = create_app(self.settings, gate, self.store, self.rp, Pages.from_settings(self.settings), returns)

        async def called(scope: Any, receive: Any, send: Any) -> None:
            scope["postern"] = Call(
                OWN, "request-1", "192.0.2.1", "https", "apps.example.com", "https://apps.example.com/"
            )
            await app(scope, receive, send)

        self.client = httpx2.AsyncClient(transport=httpx2.ASGITransport(called), base_url="https://apps.example.com")
        self.living: dict[str, str] = {}

    async def populate(self) -> None:
        for name, sub, sid in (("ada1", "ada", "s1"), ("ada2", "ada", "s2"), ("bob", "bob", "s3")):
            grant = Grant(Identity(sub=sub), TOKENS, sid, 1.0)
            _, self.living[name] = await self.store.create(grant, browser="b", address="192.0.2.1")

    async def alive(self) -> list[str]:
        return [name for name, cookie in self.living.items() if await self.store.load(cookie) is not None]

    def token(self, **changes: Any) -> str:
        now = int(self.logto.now)
        claims = {
            "sub": "ada", "events": {EVENT: {}}, "jti": secrets.token_urlsafe(32), "sid": "s1", "aud": CLIENT_ID,
            "exp": now + 120, "iat": now, "iss": self.logto.issuer,
        } | changes | self.logto.claims  # fmt: skip
        header = {"alg": "ES384", "typ": "logout+jwt", "kid": self.logto.keys[0].kid} | self.logto.header
        claims = {name: value for name, value in claims.items() if value is not ...}
        header = {name: value for name, value in header.items() if value is not ...}
        if self.logto.forge is not None:
            return self.logto.forge(claims, header)
        return sign(claims, header, self.logto.keys[0].private)

    async def log_out(self, token: str, **more: Any) -> httpx2.Response:
        answer = await self.client.post(LOGOUT, **({"data": {"logout_token": token}} | more))
        assert answer.headers["cache-control"] == "no-store"
        return answer

    async def hook(self, content: bytes, signature: str | None = None, **headers: str) -> httpx2.Response:
        given = hmac.digest(KEY.encode(), content, hashlib.sha256).hex() if signature is None else signature
        headers = {"content-type": "application/json", "logto-signature-sha-256": given} | headers
        answer = await self.client.post(HOOK, content=content, headers=headers)
        assert answer.headers["cache-control"] == "no-store"
        return answer

    def event(self, event: str, **more: Any) -> bytes:
        moment = datetime.fromtimestamp(self.logto.now + more.pop("later", 0.0), UTC)
        created = moment.isoformat(timespec="milliseconds")
        return json.dumps({"event": event, "createdAt": created, "hookId": "h", **more}).encode()


@contextlib.asynccontextmanager
async def bench(key: str = KEY) -> AsyncIterator[Bench]:
    async with LyingProvider().running() as logto:
        it = Bench(logto, key)
        await it.populate()
        try:
            yield it
        finally:
            await it.client.aclose()
            await it.rp.close()


def run(conversation: Callable[[Bench], Awaitable[None]], key: str = KEY) -> None:
    async def hold() -> None:
        async with bench(key) as it:
            await conversation(it)

    asyncio.run(hold())


# -- back-channel logout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({}, ["ada2", "bob"]),
        ({"sub": ...}, ["ada2", "bob"]),
        ({"sid": ...}, ["bob"]),
        ({"sid": None}, ["bob"]),
        ({"sid": "unknown"}, ["ada1", "ada2", "bob"]),
        ({"sid": ..., "sub": "unknown"}, ["ada1", "ada2", "bob"]),
    ],
)
def test_a_logout_at_logto_ends_its_sessions_and_no_other(changes: dict[str, Any], left: list[str]) -> None:
    async def conversation(it: Bench) -> None:
        answer = await it.log_out(it.token(**changes))
        assert (answer.status_code, answer.content) == (200, b"")
        assert await it.alive() == left

    run(conversation)


def test_typ_may_be_written_as_a_media_type() -> None:
    async def conversation(it: Bench) -> None:
        it.logto.header = {"typ": "application/LOGOUT+JWT"}
        assert (await it.log_out(it.token())).status_code == 200
        assert await it.alive() == ["ada2", "bob"]

    run(conversation)


def test_a_new_key_of_logtos_is_fetched() -> None:
    async def conversation(it: Bench) -> None:
        assert (await it.log_out(it.token(sid="unknown"))).status_code == 200
        it.logto.rotate()
        it.logto.now += 10
        assert (await it.log_out(it.token())).status_code == 200
        assert await it.alive() == ["ada2", "bob"]

    run(conversation)


def claims(**changes: Any) -> Forge:
    return lambda logto: logto.claims.update(changes)


def header(**changes: Any) -> Forge:
    return lambda logto: logto.header.update(changes)


def later(**seconds: float) -> Forge:
    return lambda logto: logto.claims.update({name: logto.now + shift for name, shift in seconds.items()})


FORGED: dict[str, Forge] = {
    "typ of an ID token": header(typ="JWT"),
    "typ of an access token": header(typ="at+jwt"),
    "typ missing": header(typ=...),
    "typ null": header(typ=None),
    "typ of another event": header(typ="secevent+jwt"),
    "crit": header(crit=["exp"]),
    "iss of another": claims(iss="https://evil.example/oidc"),
    "iss missing": claims(iss=...),
    "aud of another": claims(aud="another-client"),
    "aud several": claims(aud=[CLIENT_ID, "another"]),
    "aud missing": claims(aud=...),
    "expired": later(exp=-LEEWAY - 1, iat=-200),
    "exp missing": claims(exp=...),
    "exp text": claims(exp="9999999999"),
    "lives for a day": later(exp=86400),
    "issued in the future": later(iat=LEEWAY + 1),
    "issued long ago": later(iat=-7200),
    "iat missing": claims(iat=...),
    "not valid yet": later(nbf=LEEWAY + 1),
    "jti missing": claims(jti=...),
    "jti empty": claims(jti=""),
    "jti a number": claims(jti=1),
    "events missing": claims(events=...),
    "events a list": claims(events=[EVENT]),
    "events of another kind": claims(events={"https://schemas.openid.net/secevent/risc/event-type/account-disabled": {}}),
    "event null": claims(events={EVENT: None}),
    "nonce": claims(nonce="n"),
    "nonce null": claims(nonce=None),
    "neither sub nor sid": claims(sub=..., sid=...),
    "sid unreadable": claims(sid=["s1"]),
    "sub unreadable": claims(sub=7),
    "alg none": unsigned("none"),
    "alg empty": unsigned(""),
    "HS256 with the client secret": by_hmac("HS256", lambda _: CLIENT_SECRET.encode()),
    "HS384 with the public key": by_hmac("HS384", public_pem),
    "another key under a known kid": by_stranger(),
    "another key without kid": by_stranger(drop_kid=True),
    "unknown kid": by_stranger(kid="unknown"),
    "jwk in the header": by_stranger(advertise="jwk"),
    "jku in the header": by_stranger(advertise="jku", kid="stranger"),
    "x5c in the header": by_stranger(advertise="x5c", kid="stranger"),
    "payload swapped": after_signing(swapped_payload),
    "signature cut off": after_signing(lambda token: token.rpartition(".")[0] + "."),
    "signature missing": after_signing(lambda token: token.rpartition(".")[0]),
    "signature changed": after_signing(lambda token: token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")),
    "not a token": forge(lambda *_: "not.a.token"),
    "not ASCII": forge(lambda *_: "ä.b.c"),
    "claims a list": forge(lambda _, h, p: sign(b"[]", h, p.keys[0].private)),
    "header a list": forge(lambda c, _, __: encoded(json.dumps(c).encode(), [], lambda *_: b"", None)),
    "huge": after_signing(lambda token: token + "A" * 70_000),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_no_forged_or_stale_logout_token_ends_a_session(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        FORGED[name](it.logto)
        token = it.token()
        answer = await it.log_out(token)
        assert answer.status_code == 400
        assert answer.json()["error"] == "invalid_request"
        assert await it.alive() == ["ada1", "ada2", "bob"]
        assert token[:100] not in caplog.text

    run(conversation)


def test_there_are_enough_forgeries() -> None:
    assert len(FORGED) >= 40


def test_an_id_token_of_this_very_session_does_not_end_it() -> None:
    async def conversation(it: Bench) -> None:
        it.logto.claims = {"sub": "ada", "sid": "s1"}
        assert (await it.log_out(it.logto.id_token(None))).status_code == 400
        assert (await it.log_out(it.logto.id_token("nonce"))).status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_each_token_works_once() -> None:
    async def conversation(it: Bench) -> None:
        token = it.token(sid=...)
        assert (await it.log_out(token)).status_code == 200
        await it.populate()
        assert (await it.log_out(token)).status_code == 400
        assert (await it.log_out(it.token(sid=..., jti=json.loads(_payload(token))["jti"]))).status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def _payload(token: str) -> bytes:
    return base64.urlsafe_b64decode(token.split(".")[1] + "==")


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", FORM),
        (b"logout_token=", FORM),
        (b"token=TOKEN", FORM),
        (b"logout_token=TOKEN&logout_token=TOKEN", FORM),
        (b"logout_token=TOKEN", {"content-type": "text/plain"}),
        (b"logout_token=TOKEN", {}),
        (b'{"logout_token":"TOKEN"}', {"content-type": "application/json"}),
        (b"a=1&" * 60 + b"logout_token=TOKEN", FORM),
        (b"logout_token=TOKEN&x=\xff", FORM),
        (b"logout_token=TOKEN&x=" + b"x" * BODY_BYTES, FORM),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_only_one_token_in_a_form_is_a_logout(content: bytes, headers: dict[str, str]) -> None:
    async def conversation(it: Bench) -> None:
        answer = await it.log_out(
            "", data=None, content=content.replace(b"TOKEN", it.token().encode()), headers=headers
        )
        assert answer.status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


@pytest.mark.parametrize("path", [LOGOUT, HOOK])
def test_only_post_is_answered(path: str) -> None:
    async def conversation(it: Bench) -> None:
        for method in ("GET", "HEAD", "PUT", "DELETE"):
            assert (await it.client.request(method, path)).status_code == 405

    run(conversation)


def test_a_token_in_the_query_is_no_logout() -> None:
    async def conversation(it: Bench) -> None:
        query = "?" + urlencode({"logout_token": it.token()})
        assert (await it.client.post(LOGOUT + query, headers=FORM)).status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_without_logtos_keys_a_logout_is_put_off_not_refused() -> None:
    async def conversation(it: Bench) -> None:
        it.logto.replies[KEYS] = (500, oauth_error("server_error", "down"))
        answer = await it.log_out(it.token())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_a_store_that_is_away_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def conversation(it: Bench) -> None:
        async def away(*_: Any) -> int:
            raise StoreUnavailable("away")

        monkeypatch.setattr(it.store, "end_sid", away)
        monkeypatch.setattr(it.store, "end_user", away)
        assert (await it.log_out(it.token())).status_code == 503
        assert (await it.hook(it.event("User.Deleted", params={"userId": "ada"}))).status_code == 503

    run(conversation)


# -- webhooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "more", "left"),
    [
        ("User.Deleted", {"params": {"userId": "ada"}}, ["bob"]),
        ("User.Deleted", {"params": {"userId": "unknown"}}, ["ada1", "ada2", "bob"]),
        (
            "User.SuspensionStatus.Updated",
            {"params": {"userId": "ada"}, "data": {"id": "ada", "isSuspended": True}},
            ["bob"],
        ),
        (
            "User.SuspensionStatus.Updated",
            {"params": {"userId": "ada"}, "data": {"id": "ada", "isSuspended": False}},
            ["ada1", "ada2", "bob"],
        ),
        ("User.Data.Updated", {"params": {"userId": "ada"}}, ["ada1", "ada2", "bob"]),
        ("Role.Deleted", {"params": {"id": "r"}}, ["ada1", "ada2", "bob"]),
        ("Organization.Membership.Updated", {"removedUserIds": ["ada"]}, ["ada1", "ada2", "bob"]),
        ("Anything.Else", {"params": {"userId": "ada"}}, ["ada1", "ada2", "bob"]),
    ],
)
def test_a_webhook_ends_the_sessions_of_who_may_not_go_on(event: str, more: dict[str, Any], left: list[str]) -> None:
    async def conversation(it: Bench) -> None:
        assert (await it.hook(it.event(event, **more))).status_code == 204
        assert await it.alive() == left

    run(conversation)


@pytest.mark.parametrize(
    ("event", "more", "marked"),
    [
        ("User.Data.Updated", {"params": {"userId": "ada"}}, ["ada1", "ada2"]),
        ("Organization.Membership.Updated", {"removedUserIds": ["bob"]}, ["bob"]),
        ("Role.Data.Updated", {"params": {"id": "r"}}, ["ada1", "ada2", "bob"]),
        ("User.SuspensionStatus.Updated", {"params": {"userId": "bob"}, "data": {"isSuspended": False}}, ["bob"]),
        ("Role.Created", {"params": {"id": "r"}}, []),
        ("User.Data.Updated", {"params": {"userId": "unknown"}}, []),
    ],
)
def test_a_webhook_has_those_renewed_of_whom_something_has_changed(
    event: str, more: dict[str, Any], marked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.notices._BATCH", 2)

    async def conversation(it: Bench) -> None:
        assert (await it.hook(it.event(event, **more))).status_code == 204
        found = {name: await it.store.load(cookie) for name, cookie in it.living.items()}
        assert [name for name, session in found.items() if session and session.renew_at <= it.logto.now] == marked

    run(conversation)


def test_a_sign_in_at_logto_is_in_the_audit_log(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        with caplog.at_level(logging.INFO, "postern.audit"):
            await it.hook(it.event("PostSignIn", userId="ada", userIp="192.0.2.7", application={"id": "app"}))
        (record,) = (record for record in caplog.records if record.name == "postern.audit")
        assert {name: record.__dict__[name] for name in ("user", "address", "application", "reason")} == {
            "user": "ada",
            "address": "192.0.2.7",
            "application": "app",
            "reason": "PostSignIn",
        }

    run(conversation)


GOOD_SIGNATURE = hmac.new(KEY.encode(), b"", hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "0" * 64,
        GOOD_SIGNATURE,  # of another body
        "UPPER",
        "CUT",
        "sha256=SIGNATURE",
        "OTHER KEY",
        "EMPTY KEY",
        "SHA-1",
        "é" * 32,
        "SIGNATURE,SIGNATURE",
    ],
)
def test_no_wrong_signature_ends_a_session(signature: str) -> None:
    async def conversation(it: Bench) -> None:
        content = it.event("User.Deleted", params={"userId": "ada"})
        good = hmac.digest(KEY.encode(), content, "sha256").hex()
        forged = {
            "UPPER": good.upper(),
            "CUT": good[:-1],
            "OTHER KEY": hmac.digest(b"k" * 32, content, "sha256").hex(),
            "EMPTY KEY": hmac.digest(b"", content, "sha256").hex(),
            "SHA-1": hmac.digest(KEY.encode(), content, "sha1").hex(),
        }.get(signature, signature.replace("SIGNATURE", good))
        answer = await it.client.post(HOOK, content=content, headers=[(b"logto-signature-sha-256", forged.encode())])
        assert answer.status_code == 401
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


@pytest.mark.parametrize("later", [-301.0, -3600.0, 31.0, 3600.0])
def test_a_webhook_of_another_time_ends_nothing(later: float) -> None:
    async def conversation(it: Bench) -> None:
        content = it.event("User.Deleted", params={"userId": "ada"}, later=later)
        assert (await it.hook(content)).status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_the_same_webhook_again_does_nothing() -> None:
    async def conversation(it: Bench) -> None:
        content = it.event("User.Deleted", params={"userId": "ada"})
        assert (await it.hook(content)).status_code == 204
        await it.populate()
        assert (await it.hook(content)).status_code == 204
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_nothing_that_is_too_large_or_no_json_is_taken() -> None:
    async def conversation(it: Bench) -> None:
        padding = "x" * BODY_BYTES
        assert (await it.hook(it.event("User.Deleted", params={"userId": "ada"}, padding=padding))).status_code == 413
        assert (await it.hook(b"User.Deleted")).status_code == 400
        assert (await it.hook(b"")).status_code == 400
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation)


def test_without_a_key_no_webhook_is_taken() -> None:
    async def conversation(it: Bench) -> None:
        assert (await it.hook(it.event("User.Deleted", params={"userId": "ada"}))).status_code == 404
        assert await it.alive() == ["ada1", "ada2", "bob"]

    run(conversation, key="")


def test_the_key_is_in_no_message(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation(it: Bench) -> None:
        await it.hook(b"x", signature="0" * 64)
        assert KEY not in caplog.text + repr(it.settings)

    run(conversation)
