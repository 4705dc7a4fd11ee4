"""Django behind the gateway, set up by the very lines of docs/apps/django-remote-user.md."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import Gateway, StartGateway
from tests.e2e.person import Page, Person
from tests.e2e.processes import Processes, free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "apps" / "django-remote-user.md"
ROUTE = """
[[route]]
name = "app"
upstream = "{upstream}"
preset = "django-remote-user"
"""
# What a team would have written before it heard of gateways.
URLS = """
from django.contrib import admin
from django.http import HttpResponse
from django.shortcuts import render
from django.urls import include, path


def who(request):
    return HttpResponse(request.user.get_username() or "nobody", content_type="text/plain")


def form(request):
    return HttpResponse("thanks, " + who(request).content.decode()) if request.method == "POST" else render(request, "form.html")


urlpatterns = [
    path("admin/", admin.site.urls),
    path("accounts/", include("django.contrib.auth.urls")),
    path("who", who),
    path("form", form),
]
"""
FORM = """
<form method="post" action="/form">{% csrf_token %}<button>Send</button></form>
<form method="post" action="/accounts/logout/">{% csrf_token %}<button>Leave</button></form>
"""
SERVERS = {
    # wsgiref tells `-` from `_` in names of fields as little as most others do.
    "wsgi": [
        "-c",
        (
            "import sys; from wsgiref.simple_server import make_server; from app.wsgi import application; "
            "make_server('127.0.0.1', int(sys.argv[1]), application).serve_forever()"
        ),
    ],
    "asgi": ["-m", "uvicorn", "app.asgi:application", "--lifespan=off", "--port"],
}
LOCAL = """
ALLOWED_HOSTS = ["localhost", "127.0.0.1"]
TEMPLATES[0]["DIRS"] = [BASE_DIR]
"""


@pytest.fixture(scope="module", params=list(SERVERS))
def app(
    request: pytest.FixtureRequest,
    group: Processes,
    start_gateway: StartGateway,
    tmp_path_factory: pytest.TempPathFactory,
) -> Gateway:
    """A gateway before a fresh project with what the page says, and two views."""
    directory = tmp_path_factory.mktemp("django")
    _run(directory, "-m", "django", "startproject", "app", ".")
    middleware, settings = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (directory / "app" / "middleware.py").write_text(middleware)
    (directory / "app" / "urls.py").write_text(URLS)
    (directory / "form.html").write_text(FORM)
    with (directory / "app" / "settings.py").open("a") as file:
        file.write(settings + LOCAL)
    _run(directory, "manage.py", "migrate", "--verbosity=0")
    port = free_port()
    served = [sys.executable, *SERVERS[request.param], str(port)]
    group.start(request.param, served, cwd=directory).ready(f"http://127.0.0.1:{port}/who")
    return start_gateway(f"before-{request.param}", ROUTE.format(upstream=f"http://127.0.0.1:{port}"))


@pytest.fixture
def ada(app: Gateway) -> Iterator[Person]:
    with app.signed_in("Ada") as person:
        yield person


def test_whoever_signs_in_has_an_account(app: Gateway, ada: Person) -> None:
    assert _who(app, ada) == _me(app, ada)
    assert ada.browse(app.url + "/admin/").url.startswith(app.url + "/admin/login/"), "an account, not the keys"
    with Person() as stranger:
        assert stranger.request("GET", app.url + "/who").status_code == 401


def test_its_forms_are_taken_for_its_own(app: Gateway, ada: Person) -> None:
    """Its guard against forged requests compares Origin with Host, and wants its cookie back."""
    page = ada.press(ada.browse(app.url + "/form"), "Send")
    assert page.status == 200
    assert page.text == f"thanks, {_me(app, ada)}"


@pytest.mark.parametrize("name", ["Remote-User", "remote-user", "REMOTE_USER", "Remote_User", "HTTP-Remote-User"])
def test_nobody_names_themselves(app: Gateway, ada: Person, name: str) -> None:
    answer = ada.request("GET", app.url + "/who", headers={name: "admin", name.swapcase(): "admin"})
    assert answer.text == _me(app, ada)


def test_who_comes_next_is_not_taken_for_who_was_there(app: Gateway, ada: Person) -> None:
    """Django has a session of its own, in a cookie that a sign-out of the gateway's leaves where it is."""
    first = _who(app, ada)
    assert ada.jar.named("sessionid")
    ada.press(ada.browse(app.url + "/.postern/sign-out"), "Sign out")
    kept = ada.jar.named("sessionid")
    assert kept
    with app.signed_in("Max") as member:
        member.jar.cookies[(kept.host, kept.path, kept.name)] = kept
        assert _who(app, member) == _me(app, member) != first


@pytest.mark.parametrize("way", ["the button", "a link that Django takes no longer"])
def test_its_sign_out_leads_on_to_the_gateways(app: Gateway, way: str) -> None:
    with app.signed_in("Ada", at="/form") as leaving:
        page = leaving.browse(app.url + "/form")
        page = leaving.press(page, "Leave") if way == "the button" else leaving.browse(app.url + "/admin/logout/")
        assert page.url == app.url + "/.postern/sign-out"
        assert (leaving.jar.named("sessionid") is None) is (way == "the button"), "Django's own session has ended first"
        leaving.press(page, "Sign out")
        assert leaving.request("GET", app.url + "/who").status_code == 401


def _who(app: Gateway, person: Person) -> str:
    """Whom Django takes the sender for."""
    page: Page = person.browse(app.url + "/who")
    assert page.status == 200
    return page.body.decode()


def _me(app: Gateway, person: Person) -> str:
    me = person.request("GET", app.url + "/.postern/me").json()
    return str(me["username"] or me["sub"])


def _run(directory: Path, *arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=directory, check=True, timeout=60)
