"""Somebody's own sessions: listed for them, ended at their wish, and never anybody else's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxy.claims import Identity, Tokens
from proxy.session import Session
from tests.gateway_world import ADA, NAVIGATE, TOKENS, World, grant_for, settings_for

FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
CLICK = {**NAVIGATE, "Sec-Fetch-Site": "same-origin", "Origin": "https://apps.example.com"}
BOB = Identity(sub="bob", name="Bob")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(settings_for(tmp_path)) as it:
        yield it


def elsewhere(
    world: World, identity: Identity = ADA, *, browser: str = FIREFOX, address: str = "203.0.113.9", token: str = "rt2"
) -> Session:
    """A session of `identity` that began somewhere else."""
    grant = grant_for(identity, replace(TOKENS, refresh_token=token))
    return world.runner.run(world.store.create(grant, browser=browser, address=address))[0]


def living(world: World, sub: str = "ada") -> list[str]:
    return [session.id for session in world.runner.run(world.store.of_user(sub))]


def test_the_page_lists_ones_own_sessions_with_a_button_for_each_other(world: World) -> None:
    cookie = world.sign_in()
    other, bobs = elsewhere(world), elsewhere(world, BOB, address="198.51.100.7")
    answer = world.get("/.postern/", Cookie=cookie)
    assert answer.status == 200
    for part in ("Where you are signed in", "this one", "192.0.2.1", "Firefox on Linux", "203.0.113.9", "Test/1.0"):
        assert part in answer.text
    assert f'action="/.postern/sessions/{other.id}/end"' in answer.text
    assert 'action="/.postern/sessions/end-others"' in answer.text
    assert answer.text.count('/end"') == 1, "none for this one"
    assert bobs.id not in answer.text
    assert "198.51.100.7" not in answer.text


def test_who_is_signed_in_here_alone_has_nothing_to_end(world: World) -> None:
    text = world.get("/.postern/", Cookie=world.sign_in()).text
    assert "this one" in text
    assert "/.postern/sessions/" not in text


def test_a_program_without_a_name_and_hostile_ones_are_shown_harmlessly(world: World) -> None:
    cookie = world.sign_in()
    elsewhere(world, browser="")
    elsewhere(world, browser='<script>alert("1")</script>', address='"><img src=x>')
    text = world.get("/.postern/", Cookie=cookie).text
    assert "An unknown program" in text
    assert "<script" not in text
    assert "<img" not in text


@pytest.mark.parametrize(("others", "listed", "more"), [(19, 20, False), (20, 20, True), (60, 20, True)])
def test_of_very_many_the_latest_are_listed(world: World, others: int, listed: int, more: bool) -> None:
    cookie = world.sign_in()  # the oldest of them
    ids = [elsewhere(world).id for _ in range(others)]
    text = world.get("/.postern/", Cookie=cookie).text
    assert "this one" in text
    assert text.count("signed in 2") - text.count("End the session") == listed
    assert ("Older sessions are not listed" in text) is more
    assert ids[-1] in text
    answer = world.post("/.postern/sessions/end-others", CLICK, Cookie=cookie)
    assert (answer.status, answer.location) == (303, "/.postern/")
    assert len(living(world)) == 1, "those that are not listed as well"


def test_one_is_ended_and_nothing_else(world: World) -> None:
    cookie = world.sign_in()
    left: list[Tokens] = []
    world.store.on_leftover(left.append)
    other, third = elsewhere(world), elsewhere(world, token="rt3")
    answer = world.post(f"/.postern/sessions/{other.id}/end", CLICK, Cookie=cookie)
    assert (answer.status, answer.location) == (303, "/.postern/")
    assert not answer.set_cookies
    assert other.id not in living(world)
    assert third.id in living(world)
    assert [tokens.refresh_token for tokens in left] == ["rt2"], "to be taken back at Logto"
    again = world.post(f"/.postern/sessions/{other.id}/end", CLICK, Cookie=cookie)
    assert (again.status, again.location) == (303, "/.postern/"), "a second click does no harm"


def test_nobody_elses_can_be_ended_nor_told_from_none(world: World) -> None:
    cookie = world.sign_in()
    bobs = elsewhere(world, BOB)
    answers = [
        world.post(f"/.postern/sessions/{session_id}/end", CLICK, Cookie=cookie)
        for session_id in (bobs.id, "A" * 22, "x", "%2e%2e", "a%2fb")
    ]
    assert {(answer.status, answer.headers.get("location")) for answer in answers[:4]} == {(303, "/.postern/")}
    assert answers[4].status == 404
    assert living(world, "bob") == [bobs.id]
    assert world.post("/.postern/sessions/end-others", CLICK, Cookie=cookie).status == 303
    assert living(world, "bob") == [bobs.id]


def test_this_one_is_ended_by_signing_out(world: World) -> None:
    cookie = world.sign_in()
    (own,) = living(world)
    answer = world.post(f"/.postern/sessions/{own}/end", CLICK, Cookie=cookie)
    assert (answer.status, answer.location) == (303, "/.postern/sign-out")
    assert living(world) == [own]


@pytest.mark.parametrize("path", ["end-others", "ID/end"])
@pytest.mark.parametrize(
    "sent_by",
    [{"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Origin": "https://evil.example"}, {}],
)
def test_another_site_ends_nothing(world: World, path: str, sent_by: dict[str, str]) -> None:
    cookie, other = world.sign_in(), elsewhere(world)
    headers = {"Accept": "text/html"} | sent_by
    answer = world.post("/.postern/sessions/" + path.replace("ID", other.id), headers, Cookie=cookie)
    assert answer.status == 403
    assert "That was not your click" in answer.text
    assert len(living(world)) == 2


@pytest.mark.parametrize("path", ["end-others", "ID/end"])
def test_without_a_session_there_is_nothing_to_end(world: World, path: str) -> None:
    other = elsewhere(world)
    answer = world.post("/.postern/sessions/" + path.replace("ID", other.id), CLICK)
    assert (answer.status, answer.location) == (303, "/.postern/")
    assert living(world) == [other.id]


@pytest.mark.parametrize("path", ["end-others", "ID/end"])
def test_only_a_post_ends_anything(world: World, path: str) -> None:
    cookie, other = world.sign_in(), elsewhere(world)
    answer = world.get("/.postern/sessions/" + path.replace("ID", other.id), Cookie=cookie)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert len(living(world)) == 2


def test_in_chinese(world: World) -> None:
    cookie = world.sign_in()
    elsewhere(world)
    text = world.get("/.postern/", Cookie=cookie, Accept_Language="zh-CN").text
    for part in ("您的登录会话", "当前会话", "结束所有其他会话"):
        assert part in text
