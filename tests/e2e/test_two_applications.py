"""One gateway as two applications of one provider, by host: a certified provider, a real gateway, a person with one browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.origin import Origin
from tests.e2e.person import Person
from tests.e2e.processes import Processes, free_port
from tests.e2e.second_provider import CLIENT_ID, CLIENT_SECRET, SecondProvider, start_second_provider

OTHER_ID, OTHER_SECRET = "the-other-application", "a-secret-for-loopback-only-0002"
WITHIN = 20.0  # seconds; a logout is announced at once, to one application after the other


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def provider(group: Processes, port: int) -> SecondProvider:
    def client(client_id: str, secret: str, base: str) -> dict[str, object]:
        return {
            "client_id": client_id,
            "client_secret": secret,
            "redirect_uris": [f"{base}/.postern/callback"],
            "post_logout_redirect_uris": [f"{base}/.postern/signed-out"],
            "backchannel_logout_uri": f"{base}/.postern/backchannel-logout",
            "backchannel_logout_session_required": True,
        }

    one = client(CLIENT_ID, CLIENT_SECRET, f"http://localhost:{port}")
    other = client(OTHER_ID, OTHER_SECRET, f"http://127.0.0.1:{port}")
    return start_second_provider(group, f"http://localhost:{port}", clients=(one, other))


@pytest.fixture(scope="module")
def gateway(origin: Origin, provider: SecondProvider, port: int, start_gateway: StartGateway) -> Gateway:
    env = {
        "LOGTO_ENDPOINT": provider.endpoint,
        "LOGTO_APP_ID": CLIENT_ID,
        "LOGTO_APP_SECRET": CLIENT_SECRET,
        "POSTERN_LOGTO__REFRESH": "offline",  # this provider gives refresh tokens with offline_access only
        "POSTERN_LOGTO__APPLICATION__0__HOSTS": "127.0.0.1",
        "POSTERN_LOGTO__APPLICATION__0__APP_ID": OTHER_ID,
        "POSTERN_LOGTO__APPLICATION__0__APP_SECRET": OTHER_SECRET,
    }
    return start_gateway("two-applications", origin.url, port=port, env=env)


@pytest.fixture
def hosts(gateway: Gateway) -> tuple[str, str]:
    """The two sites, as people write them."""
    return gateway.url, gateway.url.replace("localhost", "127.0.0.1")


def arrives(person: Person, url: str) -> set[str]:
    """Open a page; whoever the provider does not know yet says that they are Ada. As which applications it was asked for that."""
    page = person.browse(url + "/seen")
    trail = list(page.trail)
    if "Who are you?" in page.text:
        page = person.choose(page, "Ada Example")
        trail += page.trail
    assert page.url == url + "/seen", page
    asked = [parse_qs(urlsplit(there).query) for there in trail if urlsplit(there).path == "/oidc/auth"]
    return {client for query in asked for client in query["client_id"]}


def is_in(person: Person, url: str) -> bool:
    return person.request("GET", url + "/.postern/me").status_code == 200


def signed_out(person: Person, url: str) -> bool:
    """Whether a session is over before long."""
    deadline = time.monotonic() + WITHIN
    while is_in(person, url):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_each_host_asks_as_its_application_and_a_sign_out_reaches_both(
    hosts: tuple[str, str], provider: SecondProvider
) -> None:
    one, other = hosts
    with Person() as person:
        assert arrives(person, one) == {CLIENT_ID}
        assert not is_in(person, other)
        assert arrives(person, other) == {OTHER_ID}
        assert [is_in(person, url) for url in hosts] == [True, True]
        page = person.press(person.browse(other + "/.postern/sign-out"), "Sign out")
        assert page.url.startswith(provider.endpoint + "/oidc/session/end"), page
        page = person.press(page, "Yes")
        assert page.url.startswith(other + "/.postern/signed-out"), page
        assert not is_in(person, other)
        assert signed_out(person, one), "the provider has told the other application of it"


def test_a_sign_out_of_one_app_alone_leaves_the_other_signed_in(hosts: tuple[str, str]) -> None:
    with Person() as person:
        for url in hosts:
            arrives(person, url)
        page = person.press(person.browse(hosts[1] + "/.postern/sign-out"), "Sign out here only")
        assert page.url.startswith(hosts[1] + "/.postern/"), page
        assert [is_in(person, url) for url in hosts] == [True, False]


def test_one_hosts_cookie_is_worth_nothing_on_the_other(hosts: tuple[str, str]) -> None:
    one, other = hosts
    with Person() as person:
        arrives(person, one)
        stolen = {"Cookie": person.cookie_header(one + "/seen")}
        assert person.request("GET", one + "/seen", headers=stolen).status_code == 200
        assert person.request("GET", other + "/seen", headers=stolen).status_code == 401
        assert person.request("GET", other + "/.postern/me", headers=stolen).status_code == 401
