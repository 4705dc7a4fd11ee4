"""Radicale behind the gateway: it believes `X-Remote-User` blindly, so only the gateway may ever say it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import caldav
import pytest

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.person import Person
from tests.e2e.processes import Processes, free_port

ROUTES = """
[[route]]
name = "calendars"
upstream = "{upstream}"
preset = "radicale"

[[route]]
name = "below"
path = "/dav"
upstream = "{upstream}"
preset = "radicale"
strip_prefix = "/dav"
headers = {{ set = {{ X-Script-Name = "/dav" }} }}
"""

EVENT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Postern//end to end//EN
BEGIN:VEVENT
UID:board-meeting@example.com
DTSTAMP:20260101T000000Z
DTSTART:20260601T090000Z
DTEND:20260601T100000Z
SUMMARY:Board meeting
END:VEVENT
END:VCALENDAR
"""

WHO_AM_I = b"""<?xml version="1.0"?>
<d:propfind xmlns:d="DAV:"><d:prop><d:current-user-principal/></d:prop></d:propfind>"""


@pytest.fixture(scope="module")
def calendars(group: Processes, start_gateway: StartGateway, tmp_path_factory: pytest.TempPathFactory) -> Gateway:
    """A gateway before a Radicale in which everybody sees what is their own."""
    port, directory = free_port(), tmp_path_factory.mktemp("radicale")
    config = directory / "config"
    config.write_text(
        f"[server]\nhosts = 127.0.0.1:{port}\n[auth]\ntype = http_x_remote_user\n[rights]\ntype = owner_only\n"
        f"[storage]\nfilesystem_folder = {directory / 'collections'}\n[web]\nprefer_browser_login = True\n"
    )
    radicale = group.start("radicale", [sys.executable, "-m", "radicale", "--config", config])
    radicale.ready(f"http://127.0.0.1:{port}/")
    return start_gateway("radicale", ROUTES.format(upstream=f"http://127.0.0.1:{port}"))


@pytest.fixture
def admin(calendars: Gateway) -> Iterator[Person]:
    with calendars.signed_in("Ada") as person:
        yield person


@pytest.fixture
def member(calendars: Gateway) -> Iterator[Person]:
    with calendars.signed_in("Max") as person:
        yield person


def test_a_calendar_client_works_as_who_is_signed_in_and_nobody_else_sees_it(
    calendars: Gateway, admin: Person, member: Person
) -> None:
    with _dav(calendars, admin) as client:
        calendar = client.principal().make_calendar(name="Board")
        calendar.save_event(EVENT)
        assert [str(event.icalendar_component["SUMMARY"]) for event in calendar.events()] == ["Board meeting"]
        path = str(calendar.url.path)
    assert path.startswith(f"/{_me(calendars, admin)}/")

    with _dav(calendars, member) as client:
        assert client.principal().calendars() == []
    answer = member.request("PROPFIND", calendars.url + path, headers={"Depth": "1"})
    assert answer.status_code == 403
    assert b"Board" not in answer.content


@pytest.mark.parametrize("name", ["X-Remote-User", "x-remote-user", "X_Remote_User", "x_remote_user", "X-REMOTE_USER"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_client_cannot_name_somebody_else(
    calendars: Gateway, admin: Person, member: Person, name: str, twice: bool
) -> None:
    """Radicale is a WSGI program: `-` and `_` look the same to it, and the last field wins."""
    victim = _me(calendars, admin)
    headers = {name: victim, **({name.swapcase(): victim} if twice else {})}
    assert _who_am_i(calendars, member, headers) == f"/{_me(calendars, member)}/"


def test_a_client_cannot_have_the_identity_removed(calendars: Gateway, member: Person) -> None:
    """`Connection` names fields to be dropped on the way (RFC 9110 7.6.1): ours is added after that."""
    headers = {"Connection": "keep-alive, X-Remote-User"}
    assert _who_am_i(calendars, member, headers) == f"/{_me(calendars, member)}/"


def test_the_web_page_needs_no_password(calendars: Gateway, member: Person) -> None:
    """It asks who it is with the browser's cookies, where Radicale is told to let it, and goes on with that."""
    page = member.browse(calendars.url + "/.web/")
    assert page.status == 200
    assert b"Radicale" in page.body
    settings = member.request("GET", calendars.url + "/.web/js/config.js")
    assert "PREFER_BROWSER_LOGIN = true" in settings.text
    assert _who_am_i(calendars, member, {}) == f"/{_me(calendars, member)}/"


def test_below_a_path_it_names_its_own_paths_right(calendars: Gateway, member: Person) -> None:
    assert _who_am_i(calendars, member, {}, at="/dav/") == f"/dav/{_me(calendars, member)}/"
    assert member.browse(calendars.url + "/dav/").url == calendars.url + "/dav/.web/"


def _dav(calendars: Gateway, person: Person) -> caldav.DAVClient:
    return caldav.DAVClient(calendars.url + "/", headers={"Cookie": person.cookie_header(calendars.url)})


def _me(calendars: Gateway, person: Person) -> str:
    name = person.request("GET", calendars.url + "/.postern/me").json()["username"]
    assert isinstance(name, str)
    return name


def _who_am_i(calendars: Gateway, person: Person, headers: dict[str, str], *, at: str = "/") -> str:
    """The principal that Radicale takes the sender for."""
    answer = person.request("PROPFIND", calendars.url + at, headers={"Depth": "0", **headers}, content=WHO_AM_I)
    assert answer.status_code == 207, answer.text
    return answer.text.partition("<current-user-principal>")[2].partition("<href>")[2].partition("</href>")[0]
