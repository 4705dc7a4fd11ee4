"""The same sign-in against a provider that is not the stand-in: certified, and configured as no Logto is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from proxy.claims import Grant
from proxy.errors import LogtoRefused
from proxy.identity import RelyingParty
from proxy.sealing import KeyRing
from proxy.settings import load
from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.origin import Origin
from tests.e2e.person import Page, Person
from tests.e2e.processes import Processes, free_port
from tests.e2e.second_provider import CLIENT_ID, CLIENT_SECRET, SecondProvider, start_second_provider

DEEP_LINK = "/seen/reports?quarter=3&q=a%20b"


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module", params=["ES384", "RS256"])
def port(request: pytest.FixtureRequest) -> tuple[int, str]:
    return free_port(), request.param


@pytest.fixture(scope="module")
def provider(group: Processes, port: tuple[int, str]) -> SecondProvider:
    return start_second_provider(group, f"http://localhost:{port[0]}", signing_alg=port[1])


@pytest.fixture(scope="module")
def gateway(origin: Origin, provider: SecondProvider, port: tuple[int, str], start_gateway: StartGateway) -> Gateway:
    env = {"LOGTO_ENDPOINT": provider.endpoint, "LOGTO_APP_ID": CLIENT_ID, "LOGTO_APP_SECRET": CLIENT_SECRET}
    return start_gateway(f"second-{port[1]}", origin.url, port=port[0], env=env)


def test_signing_in_and_out(gateway: Gateway, provider: SecondProvider) -> None:
    with Person() as person:
        page = _sign_in(person, gateway, "Ada Example")
        assert page.url == gateway.url + DEEP_LINK
        seen = _fields(person, gateway)
        assert seen["x-forwarded-user"] == "second0admin"
        assert seen["x-forwarded-preferred-username"] == "ada"
        assert seen["x-forwarded-name"] == "Ada Example"
        assert seen["x-forwarded-email"] == "ada@example.com"
        assert seen["x-forwarded-groups"] == "admin,member"
        assert seen["x-forwarded-discord-id"] == "80351110224678912"

        page = person.browse(gateway.url + "/.postern/sign-out")
        page = person.press(page, "Sign out")
        assert page.url.startswith(provider.endpoint + "/oidc/session/end"), page
        page = person.press(page, "Yes")
        assert page.url.startswith(gateway.url + "/.postern/signed-out"), page
        assert person.request("GET", gateway.url + "/.postern/me").status_code == 401
        assert "Who are you?" in person.browse(gateway.url + DEEP_LINK).text


def test_an_unverified_address_is_no_address(gateway: Gateway) -> None:
    with Person() as person:
        _sign_in(person, gateway, "Bob Example")
        seen = _fields(person, gateway)
        assert seen["x-forwarded-user"] == "second0plain"
        assert "x-forwarded-email" not in seen
        assert "x-forwarded-groups" not in seen


def test_somebody_who_says_no_gets_a_page_and_may_try_again(gateway: Gateway) -> None:
    with Person() as person:
        page = person.choose(person.browse(gateway.url + DEEP_LINK), "Cancel")
        assert (page.status, page.language) == (403, "en")
        assert person.request("GET", gateway.url + "/.postern/me").status_code == 401
        page = person.choose(person.choose(page, "Try again"), "Ada Example")
        assert page.url == gateway.url + DEEP_LINK


def test_a_second_sign_in_needs_no_choice(gateway: Gateway) -> None:
    """The provider's own session answers; the gateway's is a new one each time."""
    with Person() as person:
        _sign_in(person, gateway, "Ada Example")
        before = {cookie.value for cookie in person.jar.cookies.values() if "postern" in cookie.name}
        page = person.browse(gateway.url + "/.postern/sign-in?return_to=/seen")
        assert page.url == gateway.url + "/seen"
        after = {cookie.value for cookie in person.jar.cookies.values() if "postern" in cookie.name}
        assert before.isdisjoint(after)


def test_refreshing_and_revoking(group: Processes) -> None:
    """This provider rotates the refresh token every time, and ends everything when an old one comes back."""
    public_url = f"http://localhost:{free_port()}"  # nobody listens: the relying party is here
    provider = start_second_provider(group, public_url)

    async def live(relying_party: RelyingParty) -> None:
        first = await _signed_in(relying_party, public_url)
        second = await relying_party.refresh(first.tokens, first.identity)
        assert second.identity == first.identity
        assert second.tokens.refresh_token != first.tokens.refresh_token
        assert second.tokens.access_token != first.tokens.access_token
        assert provider.asked("/oidc/token") == 2
        with pytest.raises(LogtoRefused, match="invalid_grant"):
            await relying_party.refresh(first.tokens, first.identity)
        with pytest.raises(LogtoRefused, match="invalid_grant"):
            await relying_party.refresh(second.tokens, second.identity)

        other = await _signed_in(relying_party, public_url)
        await relying_party.revoke(other.tokens)
        assert provider.asked("/oidc/token/revocation") == 1
        with pytest.raises(LogtoRefused, match="invalid_grant"):
            await relying_party.refresh(other.tokens, other.identity)

    async def begin_and_end() -> None:
        relying_party = _relying_party(provider, public_url)
        try:
            await live(relying_party)
        finally:
            await relying_party.close()

    asyncio.run(begin_and_end())


def _relying_party(provider: SecondProvider, public_url: str) -> RelyingParty:
    environment = {
        "POSTERN_PUBLIC_URL": public_url,
        "POSTERN_UPSTREAM": "http://127.0.0.1:9",
        "LOGTO_ENDPOINT": provider.endpoint,
        "LOGTO_APP_ID": CLIENT_ID,
        "LOGTO_APP_SECRET": CLIENT_SECRET,
        "POSTERN_LOGTO__REFRESH": "offline",  # this provider gives refresh tokens with offline_access only
    }
    settings = load(None, environment)

    async def once(_key: str, _ttl: float) -> bool:
        return True

    return RelyingParty(settings, KeyRing(settings.seal_secrets), once)


async def _signed_in(relying_party: RelyingParty, public_url: str) -> Grant:
    """A grant of a fresh sign-in, the browser's part played in between."""
    begun = await relying_party.begin(public_url + "/")
    with Person(stops_at=public_url) as person:
        person.jar.store(public_url + "/", [begun.set_cookie])
        page = await asyncio.to_thread(person.browse, begun.url)
        page = await asyncio.to_thread(person.choose, page, "Ada Example")
        cookies = {cookie.name: cookie.value for cookie in person.jar.cookies.values()}
    finished = await relying_party.finish(urlsplit(page.url).query, cookies)
    return finished.grant


def _sign_in(person: Person, gateway: Gateway, who: str) -> Page:
    page = person.browse(gateway.url + DEEP_LINK)
    assert "Who are you?" in page.text, page
    return person.choose(page, who)


def _fields(person: Person, gateway: Gateway) -> dict[str, str]:
    seen = person.request("GET", gateway.url + "/seen").json()
    return {name.lower(): value for name, value in seen["fields"]}
