"""Who you are and what you may open, as a page and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.account import Visit
from proxy.claims import Identity
from proxy.session import Bounds, MemoryStore, Session
from tests.gateway_world import FETCH, NAVIGATE, ROUTES, TOKENS, World, settings_for

MORE = """
[[route]]
name = "metrics"
host = "metrics.example.com"
path = "/a b"
upstream = "http://127.0.0.1:9"

[[route]]
name = "previews"
host = "*.preview.example.com"
upstream = "http://127.0.0.1:9"
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    session = 'cookie = { domain = "example.com" }'
    with World(settings_for(tmp_path, session=session, routes=ROUTES + MORE)) as it:
        yield it


def test_a_stranger_is_shown_the_way_in(world: World) -> None:
    answer = world.get("/.postern/")
    assert answer.status == 200
    assert "You are not signed in" in answer.text
    assert (
        'href="https://apps.example.com/.postern/sign-in?return_to=https://apps.example.com/.postern/"' in answer.text
    )


@pytest.mark.parametrize("path", ["/.postern", "/.postern/"])
def test_home_says_who_you_are_and_what_you_may_open(world: World, path: str) -> None:
    answer = world.get(path, Cookie=world.sign_in())
    assert answer.status == 200
    for part in ("Ada Lovelace", "ada@example.com", "editors", "2023-11-14 22:13 UTC", "wiki", "open", "*.preview"):
        assert part in answer.text
    for part in (">admin<", ">blocked<", ">inside<"):
        assert part not in answer.text, "not open to her"
    assert 'href="https://apps.example.com/open"' in answer.text
    assert 'href="https://metrics.example.com/a%20b"' in answer.text
    assert "https://*" not in answer.text
    assert '<form method="post" action="/.postern/sign-out">' in answer.text
    assert "prompt=login" in answer.text


def test_what_depends_on_where_you_are_is_judged_from_there(world: World) -> None:
    cookie = {"Cookie": world.sign_in()}
    assert ">inside<" in world.request("GET", "/.postern/", NAVIGATE | cookie, client="10.1.2.3").text
    assert ">inside<" not in world.request("GET", "/.postern/", NAVIGATE | cookie, client="").text


def test_a_port_in_the_public_url_goes_for_every_host(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, public_url="https://apps.example.com:8443", session='cookie = { domain = "example.com" }', routes=MORE
    )
    with World(settings) as world:
        text = world.get("/.postern/", Cookie=world.sign_in()).text
        assert "https://metrics.example.com:8443/a%20b" in text


def test_the_page_in_chinese(world: World) -> None:
    answer = world.get("/.postern/", Cookie=world.sign_in(), Accept_Language="zh-TW,zh;q=0.9,en;q=0.8")
    assert answer.headers["content-language"] == "zh-CN"
    assert "您可以访问" in answer.text


def test_me(world: World) -> None:
    identity = Identity(
        sub="s1",
        username="ada",
        name="Ada",
        email="ada@example.com",
        picture="https://cdn.example/a.png",
        roles=("ops",),
        organizations=("o1",),
        organization_roles=("o1:admin",),
        discord_id="123",
        discord_username="ada#1",
        claims={"custom_data": {"secret": "claim"}},
    )
    answer = world.get("/.postern/me", FETCH, Cookie=world.sign_in(identity))
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    session = content.pop("session")
    assert content == {
        "sub": "s1",
        "username": "ada",
        "name": "Ada",
        "email": "ada@example.com",
        "picture": "https://cdn.example/a.png",
        "roles": ["ops"],
        "organizations": ["o1"],
        "organization_roles": ["o1:admin"],
        "discord": {"id": "123", "username": "ada#1"},
    }
    assert session["signed_in_at"] == "2023-11-14T22:13:20+00:00"
    assert session["created_at"] < session["expires_at"]
    for secret in (TOKENS.id_token, TOKENS.access_token, "claim"):
        assert secret not in answer.text


def test_me_of_somebody_with_little(world: World) -> None:
    content = world.get("/.postern/me", FETCH, Cookie=world.sign_in(Identity(sub="s1"))).json()
    assert content["sub"] == "s1"
    assert content["discord"] is None
    assert content["name"] is None
    assert content["roles"] == []


def test_me_for_a_stranger_is_401(world: World) -> None:
    answer = world.get("/.postern/me", FETCH)
    assert answer.status == 401
    assert answer.problem()["sign_in"].startswith("https://apps.example.com/.postern/sign-in")


def test_a_stale_cookie_hides_no_valid_one(world: World) -> None:
    valid = world.sign_in()
    stale = valid.partition("=")[0] + "=1.AAAAAAAAAAAAAAAAAAAAAA." + "A" * 43
    for field in (f"{stale}; {valid}", f"{valid}; {stale}", f'_logto={{"appId":"x"}}; {valid}'):
        assert world.get("/.postern/me", FETCH, Cookie=field).status == 200


@pytest.mark.parametrize("path", ["/.postern/", "/.postern/me"])
def test_who_looks_at_what_is_said_of_them_has_logto_asked(tmp_path: Path, path: str) -> None:
    """Somebody who only ever polls `/me` must not keep the roles of long ago until the tokens run out."""
    later = 0.0
    store = MemoryStore(idle=1e6, lifetime=1e6, clock=lambda: time.time() + later, bounds=Bounds(recheck=300.0))
    asked: list[str] = []
    with World(settings_for(tmp_path), store) as world:
        tokens = replace(TOKENS, access_expires_at=time.time() + 3600, refresh_token="refresh")
        cookie = world.sign_in(tokens=tokens)
        store.on_due(lambda _cookie, session: asked.append(session.id))

        async def nobody(_cookie: str, session: Session) -> Session:
            return session

        store.renewer = nobody
        world.runner.run(world.ask("GET", path, FETCH | {"Cookie": cookie}))
        assert asked == []
        later = 301.0
        world.runner.run(world.ask("GET", path, FETCH | {"Cookie": cookie}))
        assert set(asked) == {cookie.partition("=")[2].split(".")[1]}


def test_a_visit_shows_no_cookie(world: World) -> None:
    cookie = world.sign_in().partition("=")[2]
    session = world.runner.run(world.store.load(cookie))
    assert session is not None
    assert cookie not in repr(Visit(session, cookie))
