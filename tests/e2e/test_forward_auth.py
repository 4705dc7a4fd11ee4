"""The ready configurations of other proxies, in those proxies: sign-in, deep links, WebSockets, sign-out, and spoofing.

Apache cannot ask; it is held to the same in front of a gateway that relays.
"""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from proxy.sandbox import SANDBOX_ROBOT_ID, SANDBOX_ROBOT_SECRET
from tests.e2e.conftest import Gateway, StartGateway, walk_in
from tests.e2e.fronts import STARTED, Ports
from tests.e2e.person import Person
from tests.e2e.processes import Processes, free_port, start_sandbox

IDENTITY = ("user", "preferred-username", "email", "name", "groups", "discord-id")


@dataclass(frozen=True, slots=True)
class Front:
    """A proxy in front that asks the gateway, as browsers see it."""

    url: str
    asks_as: str
    gateway: Gateway
    logto: str

    @property
    def live(self) -> str:
        return self.url.replace("http", "ws", 1) + "/live"


@pytest.fixture(scope="module", params=list(STARTED))
def front(request: pytest.FixtureRequest, group: Processes, start_gateway: StartGateway) -> Front:
    name: str = request.param
    port, own, app = free_port(), free_port(), free_port()
    url = f"http://localhost:{port}"
    group.postern("sample", "--port", str(app)).ready(f"http://127.0.0.1:{app}/status/200")
    rules = f"""
        [[route]]
        name = "admin"
        path = "/admin"
        upstream = "http://127.0.0.1:{app}"
        allow = [{{ roles = ["admin"] }}]
        [[route]]
        name = "read-only"
        path = "/read-only"
        upstream = "http://127.0.0.1:{app}"
        allow = [{{ methods = ["GET", "HEAD"], roles = ["admin", "member"] }}]
        [[route]]
        name = "open"
        path = "/status"
        upstream = "http://127.0.0.1:{app}"
        allow = "everyone"
        [[route]]
        name = "inside"
        path = "/inside"
        upstream = "http://127.0.0.1:{app}"
        allow = [{{ networks = ["127.0.0.2/32"] }}]
        [[route]]
        name = "office"
        path = "/office"
        upstream = "http://127.0.0.1:{app}"
        allow = [{{ networks = ["192.0.2.0/24"] }}]
        [[route]]
        name = "programs"
        path = "/programs"
        upstream = "http://127.0.0.1:{app}"
        bearer = "https://api.example.com"
        allow = [{{ scopes = ["read:things"] }}]
        [[route]]
        name = "rest"
        upstream = "http://127.0.0.1:{app}"
    """
    env = {
        "POSTERN_PUBLIC_URL": url,
        "POSTERN_TRUSTED_PROXIES": "127.0.0.1/32",
        "LOGTO_ENDPOINT": (logto := start_sandbox(group, url).url),
    }
    gateway = start_gateway(f"behind-{name}", rules, port=own, env=env)
    STARTED[name](group, Ports(port, own, app), "/status/200")
    front = Front(url, name, gateway, logto)
    with Person() as person:
        assert person.request("GET", url + "/status/200").status_code == 200
    return front


@pytest.fixture(scope="module")
def ada(front: Front) -> Iterator[Person]:
    """Ada the admin, who came by a deep link."""
    with Person() as person:
        page = walk_in(person, front.url + "/reports/2026?quarter=3&q=a%20b%2Fc", "Ada")
        assert page.url == front.url + "/reports/2026?quarter=3&q=a%20b%2Fc"
        assert page.status == 200
        yield person


def test_the_app_is_told_who_it_is(front: Front, ada: Person) -> None:
    told = ada.request("GET", front.url + "/api/me?x=%2F").json()
    assert (told["username"], told["email"], told["groups"]) == ("ada", "ada@example.test", ["admin"])
    assert told["target"] == "/api/me?x=%2F"
    fields = {name.lower() for name, _ in told["headers"]}
    assert "x-postern-assertion" in fields


def test_a_stranger_is_sent_to_sign_in_or_told_so(front: Front) -> None:
    with Person() as stranger:
        page = stranger.request(
            "GET", front.url + "/x?y=1", headers={"Accept": "text/html", "Sec-Fetch-Mode": "navigate"}
        )
        assert page.status_code == 302
        fetch = stranger.request(
            "GET", front.url + "/x", headers={"Accept": "application/json", "Sec-Fetch-Mode": "cors"}
        )
        assert fetch.status_code == 401
        assert stranger.request("POST", front.url + "/x", content=b"{}").status_code == 401
        with pytest.raises(InvalidStatus) as refused:
            connect(front.live)
        assert refused.value.response.status_code == 401


def test_rules_hold(front: Front, ada: Person) -> None:
    with Person() as max_:
        assert walk_in(max_, front.url + "/notes", "Max").status == 200
        for person, method, path, status in (
            (ada, "GET", "/admin", 200),
            (max_, "GET", "/admin", 403),
            (max_, "GET", "/read-only", 200),
            (max_, "DELETE", "/read-only/x", 403),
            (max_, "GET", "/status/418", 418),
        ):
            assert person.request(method, front.url + path).status_code == status, (method, path)


def test_a_program_passes_with_its_token_and_by_no_cookie_with_a_bad_one(front: Front, ada: Person) -> None:
    form = {"grant_type": "client_credentials", "resource": "https://api.example.com", "scope": "read:things"}
    robot = {"client_id": SANDBOX_ROBOT_ID, "client_secret": SANDBOX_ROBOT_SECRET}
    answer = httpx2.post(front.logto + "/oidc/token", data=form | robot)
    with Person() as program:
        bearing = {"Authorization": f"Bearer {answer.json()['access_token']}"}
        told = program.request("GET", front.url + "/programs/x", headers=bearing)
        assert (told.status_code, SANDBOX_ROBOT_ID in told.text) == (200, True)
        refused = program.request("GET", front.url + "/programs/x")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Bearer realm="postern"')
    for mode in ("cors", "navigate"):
        wrong = {"Authorization": "Bearer a.b.c", "Sec-Fetch-Mode": mode, "Accept": "text/html"}
        refused = ada.request("GET", front.url + "/programs/x", headers=wrong)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith('Bearer realm="postern", error="invalid_token"')
        assert "location" not in refused.headers


def test_a_refusal_is_shown_whole(front: Front) -> None:
    """The page that says why, with its length and its policy; nginx takes nothing from a refusal, and shows its own."""
    with Person() as max_:
        walk_in(max_, front.url + "/notes", "Max")
        page = max_.request("GET", front.url + "/admin", headers={"Accept": "text/html", "Sec-Fetch-Mode": "navigate"})
        assert page.status_code == 403
        assert page.text.rstrip().endswith("</html>")
        if front.asks_as != "nginx":
            assert "Use another account" in page.text
            assert "content-security-policy" in page.headers
            assert page.headers["cache-control"] == "no-store"
        head = max_.request("HEAD", front.url + "/admin", headers={"Accept": "text/html"})
        assert (head.status_code, head.content) == (403, b"")
        assert max_.request("GET", front.url + "/status/200").status_code == 200, "the connection goes on"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/admin", {}, 401),
        ("/admin", {"X-Forwarded-Uri": "/status/200"}, 401),
        ("/admin", {"X-Original-URL": "http://localhost/status/200"}, 401),
        ("/admin", {"X-Original-URI": "/status/200"}, 401),
        ("/admin", {"X-Rewrite-URL": "/status/200"}, 401),
        ("/admin", {"X-Forwarded-Method": "OPTIONS"}, 401),
        ("/admin", {"X-Original-Method": "OPTIONS"}, 401),
        ("/admin", {"X-Forwarded-Host": "evil.example"}, 401),
        ("/admin", {"X-Forwarded-Proto": "https"}, 401),
        ("/admin", {"Forwarded": "for=127.0.0.1;host=localhost;proto=https"}, 401),
        ("/admin", {"X-Forwarded-For": "127.0.0.1"}, 401),
        ("/admin", {"X-Forwarded-User": "ada"}, 401),
        ("/admin", {"X_Forwarded_User": "ada"}, 401),
        ("/admin", {"X-Postern-Assertion": "a.b.c"}, 401),
        ("/admin", {"Cookie": "postern=1.forged.forged"}, 401),
        ("/.postern/auth", {"X-Forwarded-Method": "GET", "X-Forwarded-Uri": "/status/200"}, 404),
        ("/.postern/auth/nginx", {"X-Original-Method": "GET", "X-Original-URL": "http://localhost/status/200"}, 404),
        ("/.postern/auth/envoy/status/200", {}, 404),
    ],
)
def test_nobody_talks_the_way_in(front: Front, path: str, headers: dict[str, str], status: int) -> None:
    with Person() as stranger:
        assert stranger.request("GET", front.url + path, headers=headers).status_code == status


@pytest.mark.parametrize(
    ("source", "path", "passes"),
    [("127.0.0.2", "/inside", True), ("127.0.0.3", "/inside", False), ("127.0.0.2", "/office", False)],
)
@pytest.mark.parametrize("said", ["", "192.0.2.7", "127.0.0.2", "192.0.2.7, 127.0.0.1"])
def test_the_clients_address_is_the_one_that_the_proxy_saw(
    front: Front, source: str, path: str, passes: bool, said: str
) -> None:
    """A rule for networks, asked from an address of loopback's that is not the proxy's own."""
    there = urlsplit(front.url)
    connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=15, source_address=(source, 0))
    fields = {"Host": there.netloc, "Accept": "application/json"}
    if said:
        fields |= {"X-Forwarded-For": said, "X-Real-IP": said, "Forwarded": f'for="{said}"'}
    with contextlib.closing(connection):
        connection.request("GET", path, headers=fields)
        assert (connection.getresponse().status == 200) == passes


@pytest.mark.parametrize("name", IDENTITY)
def test_identity_fields_are_the_gateways_alone(front: Front, ada: Person, name: str) -> None:
    folded = f"X-Forwarded-{name}".replace("-", "_")
    for spelling in (f"X-Forwarded-{name}", f"x-forwarded-{name}".upper(), folded, folded.lower()):
        told = ada.request("GET", front.url + "/api/me", headers={spelling: "forged"})
        assert "forged" not in told.text


def test_a_websocket_passes_and_another_site_cannot_open_one(front: Front, ada: Person) -> None:
    cookie = ada.cookie_header(front.url + "/live")
    with connect(front.live, additional_headers={"Cookie": cookie, "Origin": front.url}) as socket:
        assert socket.recv(timeout=10)
    with pytest.raises(InvalidStatus) as refused:
        connect(front.live, additional_headers={"Cookie": cookie, "Origin": "https://evil.example"})
    assert refused.value.response.status_code == 403


def test_a_sign_out_ends_it(front: Front) -> None:
    with Person() as person:
        walk_in(person, front.url + "/notes", "Ada")
        assert person.request("GET", front.url + "/api/me").status_code == 200
        page = person.press(person.browse(front.url + "/.postern/sign-out"), "Sign out")
        assert page.status == 200
        assert person.request("GET", front.url + "/api/me", headers={"Sec-Fetch-Mode": "cors"}).status_code == 401


def test_without_an_answer_nobody_passes(front: Front, ada: Person) -> None:
    """The last one here: the gateway is gone after it. What is open to everyone is shut then as well."""
    front.gateway.running.stop()
    with Person() as stranger:
        for person, path in ((ada, "/notes"), (stranger, "/admin"), (stranger, "/status/200")):
            page = person.request("GET", front.url + path)
            assert page.status_code in (500, 502, 503, 504), page.text
