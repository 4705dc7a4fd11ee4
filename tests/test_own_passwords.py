"""The page of app passwords: made there and shown once, listed, revoked; never by another site, never anybody else's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from proxy.claims import Identity
from proxy.credentials import Credential, Programs, Rejected, Scheme
from proxy.session import Session, cookie_name
from tests.gateway_world import ADA, NAVIGATE, Answer, World, grant_for, settings_for

ROUTES = """
[app_passwords]
per_user = 3
[[route]]
name = "dav"
path = "/dav"
upstream = "http://127.0.0.1:9"
app_passwords = true
[[route]]
name = "git"
path = "/git"
upstream = "http://127.0.0.1:9"
app_passwords = true
allow = [{ users = ["ada"], methods = ["GET"] }]
[[route]]
name = "admin"
path = "/admin"
upstream = "http://127.0.0.1:9"
app_passwords = true
allow = [{ roles = ["ops"] }]
[[route]]
name = "fresh"
path = "/fresh"
upstream = "http://127.0.0.1:9"
app_passwords = true
allow = [{ users = ["ada"], signed_in_within = "15m" }]
[[route]]
name = "wiki"
upstream = "http://127.0.0.1:9"
"""
HERE = "/.postern/passwords"
CLICK = {**NAVIGATE, "Sec-Fetch-Site": "same-origin", "Origin": "https://apps.example.com"}
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"}
GOOD = {"name": "Calendar on my phone", "route": "dav", "days": "90"}
VALUE = re.compile(r"ppw_[A-Za-z0-9_-]{65}")
BOB = Identity(sub="bob", name="Bob")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path, routes=ROUTES)) as it:
        yield it


def signed_in(world: World, identity: Identity = ADA, *, ago: float = 0.0) -> str:
    """The Cookie field of a session of somebody who signed in so many seconds ago."""
    grant = replace(grant_for(identity), signed_in_at=time.time() - ago)
    _, value = world.runner.run(world.store.create(grant, browser="Test/1.0", address="192.0.2.1"))
    return f"{cookie_name(world.settings)}={value}"


def make(world: World, cookie: str, headers: dict[str, str] = CLICK, /, **fields: str) -> Answer:
    body = urlencode({**GOOD, **fields}).encode()
    return world.request("POST", HERE, {**headers, **FORM, "Cookie": cookie}, body=body)


def made(world: World, sub: str = "ada") -> list[Session]:
    return world.runner.run(world.passwords.store.of_user(sub))


def shown(world: World, value: str, route: str = "dav") -> Session | Rejected:
    credential = Credential(Scheme.PASSWORD, value, Programs(route, app_passwords=True))
    return world.runner.run(world.passwords.verify(credential))


def test_one_is_made_and_shown_this_once(world: World) -> None:
    cookie = signed_in(world)
    page = world.get(HERE, Cookie=cookie)
    assert page.status == 200
    assert "Those you have" not in page.text
    assert re.findall(r'<option value="([a-z]+)"', page.text) == ["dav", "git"], "what a program of theirs could open"
    assert re.findall(r'<option value="(\d+)"', page.text) == ["1", "7", "30", "90", "180", "365"]
    assert '<option value="90" selected>' in page.text
    assert page.headers["referrer-policy"] == "same-origin", "or its form could not be told from a forged one"
    assert "form-action 'self'" in page.headers["content-security-policy"]

    answer = make(world, cookie)
    assert answer.status == 200
    (value,) = VALUE.findall(answer.text)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert value not in str(answer.headers)
    (session,) = made(world)
    assert session.expires_at - session.created_at == 90 * 86400
    assert session.errand is not None
    assert (session.errand.name, session.errand.route, session.identity) == ("Calendar on my phone", "dav", ADA)

    page = world.get(HERE, Cookie=cookie)
    assert value not in page.text
    for part in ("Calendar on my phone", "dav", "not used yet", f'action="{HERE}/{session.id}/revoke"'):
        assert part in page.text
    session.created_at -= 3600
    assert shown(world, value) is session
    assert "last used 20" in world.get(HERE, Cookie=cookie).text


def test_the_home_page_leads_there_where_there_is_anything_to_do(world: World, tmp_path: Path) -> None:
    assert f'href="{HERE}"' in world.get("/.postern/", Cookie=signed_in(world)).text
    with World(settings_for(tmp_path)) as other:
        cookie = signed_in(other)
        assert HERE not in other.get("/.postern/", Cookie=cookie).text
        assert "No app that you may open takes app passwords" in other.get(HERE, Cookie=cookie).text


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "Give it a name"),
        ({"name": "  \t "}, "Give it a name"),
        ({"name": "x" * 65}, "Give it a name"),
        ({"name": "a\x00b"}, "Give it a name"),
        ({"name": "a\u202eb"}, "Give it a name"),
        ({"name": "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")}, "Give it a name"),
        ({"route": "wiki"}, "Choose an app"),
        ({"route": "admin"}, "Choose an app"),
        ({"route": "fresh"}, "Choose an app"),
        ({"route": ""}, "Choose an app"),
        ({"days": "0"}, "Choose how long"),
        ({"days": "-1"}, "Choose how long"),
        ({"days": "2"}, "Choose how long"),
        ({"days": "9999"}, "Choose how long"),
        ({"days": "٣٠"}, "Choose how long"),
        ({"days": "inf"}, "Choose how long"),
    ],
)
def test_what_is_wrong_is_said_and_what_was_written_stays(world: World, fields: dict[str, str], said: str) -> None:
    answer = make(world, signed_in(world), **fields)
    assert answer.status == 422
    assert said in answer.text
    assert 'role="alert"' in answer.text
    if "name" not in fields:
        assert 'value="Calendar on my phone"' in answer.text
    assert made(world) == []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/plain", urlencode(GOOD).encode()),
        ("multipart/form-data; boundary=x", b"--x--"),
        (FORM["Content-Type"], b""),
        (FORM["Content-Type"], b"\xff\xfe"),
        (FORM["Content-Type"], urlencode({**GOOD, "more": "x" * 5000}).encode()),
        (FORM["Content-Type"], "&".join(f"f{number}=x" for number in range(50)).encode()),
    ],
)
def test_what_is_no_form_makes_nothing(world: World, kind: str, body: bytes) -> None:
    headers = {**CLICK, "Content-Type": kind, "Cookie": signed_in(world)}
    assert world.request("POST", HERE, headers, body=body).status == 422
    assert made(world) == []


def test_names_of_every_script_and_none_that_does_harm(world: World) -> None:
    cookie = signed_in(world)
    assert make(world, cookie, name=" 手机上的  日历 ").status == 200
    assert make(world, cookie, name='<script>alert("1")</script>').status == 200
    page = world.get(HERE, Cookie=cookie).text
    assert "手机上的 日历" in page
    assert "<script" not in page
    assert make(world, cookie, name='"><script>', days="0").text.count("<script") == 0


def test_of_a_field_that_comes_twice_the_first_counts(world: World) -> None:
    body = urlencode([*GOOD.items(), ("route", "git"), ("days", "365")]).encode()
    answer = world.request("POST", HERE, {**CLICK, **FORM, "Cookie": signed_in(world)}, body=body)
    (value,) = VALUE.findall(answer.text)
    assert isinstance(shown(world, value), Session)
    assert isinstance(shown(world, value, "git"), Rejected)


def test_there_is_an_end_to_how_many_anybody_may_have(world: World) -> None:
    cookie = signed_in(world)
    for number in range(3):
        assert make(world, cookie, name=str(number)).status == 200
    answer = make(world, cookie)
    assert answer.status == 422
    assert "Revoke one first" in answer.text
    assert len(made(world)) == 3
    assert make(world, signed_in(world, BOB)).status == 200, "nobody else is in the way of that"


def test_who_signed_in_long_ago_signs_in_again_first(world: World) -> None:
    """A cookie that was stolen must not become an app password, which would outlive it by far."""
    cookie = signed_in(world, ago=3601)
    page = world.get(HERE, Cookie=cookie).text
    assert "sign in again first" in page
    assert 'name="route"' not in page
    assert f"return_to=https://apps.example.com{HERE}&amp;prompt=login" in page
    answer = make(world, cookie)
    assert answer.status == 422
    assert not VALUE.search(answer.text)
    assert made(world) == []


def test_one_is_revoked_and_nobody_elses(world: World) -> None:
    cookie, bobs = signed_in(world), signed_in(world, BOB)
    (value,) = VALUE.findall(make(world, cookie).text)
    (session,) = made(world)
    for password_id in (session.id, "A" * 22, "x", "%2e%2e"):
        answer = world.post(f"{HERE}/{password_id}/revoke", CLICK, Cookie=bobs)
        assert (answer.status, answer.location) == (303, HERE)
    assert shown(world, value) is session
    assert value not in world.get(HERE, Cookie=bobs).text
    answer = world.post(f"{HERE}/{session.id}/revoke", CLICK, Cookie=cookie)
    assert (answer.status, answer.location) == (303, HERE)
    assert isinstance(shown(world, value), Rejected)
    assert made(world) == []


@pytest.mark.parametrize("path", ["", "/ID/revoke"])
@pytest.mark.parametrize(
    "sent_by",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {}],
)
def test_another_site_makes_and_revokes_nothing(world: World, path: str, sent_by: dict[str, str]) -> None:
    cookie = signed_in(world)
    make(world, cookie)
    (session,) = made(world)
    headers = {"Accept": "text/html", **FORM, "Cookie": cookie} | sent_by
    answer = world.request("POST", HERE + path.replace("ID", session.id), headers, body=urlencode(GOOD).encode())
    assert answer.status == 403
    assert "That was not your click" in answer.text
    assert not VALUE.search(answer.text)
    assert made(world) == [session]


def test_a_stranger_is_shown_the_way_in(world: World) -> None:
    answer = world.get(HERE)
    assert answer.status == 200
    assert "You are not signed in" in answer.text
    assert "sign-in?return_to=https://apps.example.com/.postern/passwords" in answer.text
    assert make(world, "postern=x").status == 401
    answer = world.post(f"{HERE}/{'A' * 22}/revoke", CLICK)
    assert (answer.status, answer.location) == (303, HERE)


def test_an_app_password_makes_no_other(world: World) -> None:
    """Whoever has caught one has it until it expires, and not for ever."""
    (value,) = VALUE.findall(make(world, signed_in(world)).text)
    name = signed_in(world).partition("=")[0]
    for cookie in (value, f"1.{value[4:26]}.{value[26:]}"):
        assert make(world, f"{name}={cookie}").status == 401
        assert make(world, "x=y", {**CLICK, "Authorization": f"Bearer {cookie}"}).status == 401
    assert len(made(world)) == 1


def test_who_is_signed_out_in_the_middle_is_left_with_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends somebody's access ends sessions, then app passwords: one that is just being made must not slip through."""
    cookie, issue = signed_in(world), world.passwords.issue

    async def late(owner: Session, *rest: Any) -> tuple[Session, str]:
        await world.store.end_user("ada")
        await world.passwords.end_user("ada", "User.Deleted")
        return await issue(owner, *rest)

    monkeypatch.setattr(world.passwords, "issue", late)
    answer = make(world, cookie)
    assert answer.status == 401
    assert not VALUE.search(answer.text)
    assert made(world) == []


def test_one_that_waits_says_so(world: World) -> None:
    cookie = signed_in(world)
    make(world, cookie)
    assert ">waiting<" not in world.get(HERE, Cookie=cookie).text
    world.runner.run(world.passwords.doubt("ada"))
    assert ">waiting<" in world.get(HERE, Cookie=cookie).text


def test_a_life_of_the_settings_own(tmp_path: Path) -> None:
    routes = ROUTES.replace("[app_passwords]", '[app_passwords]\nlifetime = "45d"')
    with World(settings_for(tmp_path, routes=routes)) as world:
        cookie = signed_in(world)
        page = world.get(HERE, Cookie=cookie).text
        assert re.findall(r'<option value="(\d+)"', page) == ["1", "7", "30", "45"]
        assert '<option value="45" selected>' in page
        assert make(world, cookie, days="90").status == 422
        assert make(world, cookie, days="45").status == 200


def test_in_chinese(world: World) -> None:
    cookie = signed_in(world)
    make(world, cookie)
    text = world.get(HERE, Cookie=cookie, Accept_Language="zh-CN").text
    for part in ("应用密码", "您已有的应用密码", "有效期", "撤销"):
        assert part in text


def test_from_a_unix_socket_there_is_no_address_to_judge_by(world: World) -> None:
    headers = {**NAVIGATE, "Cookie": signed_in(world)}
    assert '<option value="dav"' in world.request("GET", HERE, headers, client="").text
