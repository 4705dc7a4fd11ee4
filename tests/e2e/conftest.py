"""What the end-to-end tests stand on: stand-ins for Logto, and gateways for whoever asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET
from tests.e2e.person import Page, Person
from tests.e2e.processes import Processes, Running, Sandbox, free_port, processes, start_sandbox


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway, as its users know it."""

    url: str
    running: Running

    def signed_in(self, who: str, *, at: str = "/.postern/") -> Person:
        """Somebody who has just signed in as the ready person `who` and was led back to `at`."""
        person = Person()
        page = walk_in(person, self.url + "/.postern/sign-in?return_to=" + at, who)
        assert page.url == self.url + at, page
        assert page.status < 400, page
        return person


class StartGateway(Protocol):
    """Starts a gateway before `upstream`: a URL, for one set up by its environment alone, or `[[route]]` tables.

    It gets a stand-in Logto of its own unless `env` names another, and speaks TLS when `env` names a certificate.
    """

    def __call__(
        self, name: str, upstream: str, *, port: int | None = None, env: Mapping[str, str] | None = None
    ) -> Gateway: ...


def walk_in(person: Person, url: str, who: str) -> Page:
    """Open `url` as a stranger would and answer what the stand-in Logto and Discord ask, as the ready person `who`."""
    page = person.browse(url)
    if any("Continue with Discord" in label for label, _ in page.links):
        page = person.follow(page, "Continue with Discord")
    return person.choose(page, who)


_GROUP = pytest.StashKey[Processes]()


@pytest.fixture(scope="module")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Everything that a module's tests start; all of it ends with them."""
    with processes(tmp_path_factory.mktemp("processes")) as group:
        request.config.stash[_GROUP] = group
        yield group


@pytest.fixture(scope="module")
def sandbox(group: Processes) -> Sandbox:
    """A stand-in Logto for tests that need no gateway of their own."""
    return start_sandbox(group, f"http://localhost:{free_port()}")


@pytest.fixture(scope="module")
def start_gateway(group: Processes) -> StartGateway:
    """How the tests of a module start their gateways."""

    def start(name: str, upstream: str, *, port: int | None = None, env: Mapping[str, str] | None = None) -> Gateway:
        port = port or free_port()
        scheme = "https" if "POSTERN_TLS__CERT" in (env or {}) else "http"
        url = f"{scheme}://localhost:{port}"
        settings = {
            "POSTERN_PUBLIC_URL": url,
            "POSTERN_LISTEN": f"127.0.0.1:{port}",
            "LOGTO_APP_ID": SANDBOX_APP_ID,
            "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
            **(env or {}),
        }
        if "LOGTO_ENDPOINT" not in settings:
            settings["LOGTO_ENDPOINT"] = start_sandbox(group, url).url
        arguments = []
        if upstream.startswith("http"):
            settings["POSTERN_UPSTREAM"] = upstream
        else:
            config = group.directory / f"{name}.toml"
            config.write_text(upstream, encoding="utf-8")
            arguments = ["--config", str(config)]
        running = group.postern("serve", *arguments, env=settings)
        running.ready(url + "/.postern/readyz", status=lambda status: status == 200)
        return Gateway(url, running)

    return start


@pytest.fixture(scope="module")
def demo(group: Processes) -> Gateway:
    """`postern demo`: the gateway, a stand-in Logto and the sample app behind."""
    port = free_port(3)  # the stand-in Logto and the sample app take the two after it
    running = group.postern("demo", "--port", str(port))
    url = f"http://localhost:{port}"
    running.ready(url + "/.postern/readyz", status=lambda status: status == 200)
    return Gateway(url, running)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What the processes wrote before this test is no news of it."""
    if (group := item.config.stash.get(_GROUP, None)) is not None:
        group.mark()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """A failure shows what every process wrote meanwhile."""
    report = yield
    group = item.config.stash.get(_GROUP, None)
    if group is not None and report.failed:  # type: ignore[attr-defined]
        report.sections.extend(group.reports())  # type: ignore[attr-defined]
    return report
