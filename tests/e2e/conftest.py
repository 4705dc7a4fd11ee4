"""What the end-to-end tests stand on: one stand-in Logto for all of them, and a gateway for whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.person import Page, Person
from tests.e2e.processes import Processes, Running, free_port, processes

APP_ID = "posternsandbox0000001"
APP_SECRET = "sandbox-secret-of-no-value-00001"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running gateway, as its users know it."""

    url: str
    running: Running

    def signed_in(self, who: str, *, at: str = "/.postern/") -> Person:
        """Somebody who has just signed in as the ready person `who` and was led back to `at`."""
        person = Person()
        page = walk_in(person, self.url + at, who)
        assert page.url == self.url + at, page
        assert page.status < 400, page
        return person


StartGateway = Callable[..., Gateway]


def walk_in(person: Person, url: str, who: str) -> Page:
    """Open `url` as a stranger would and answer what the stand-in Logto and Discord ask, as the ready person `who`."""
    page = person.browse(url)
    page = person.choose(page, "Continue with Discord")
    return person.choose(page, who)


_GROUP = pytest.StashKey[Processes]()


@pytest.fixture(scope="session")
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Everything that these tests start; all of it ends with them."""
    with processes(tmp_path_factory.mktemp("processes")) as group:
        request.config.stash[_GROUP] = group
        yield group


@pytest.fixture(scope="session")
def start_gateway(group: Processes) -> StartGateway:
    """Start a gateway before `upstream` (a URL, or the `[[route]]` tables of a settings file)."""
    raise NotImplementedError(f"{free_port()}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Iterator[None]:
    """A failure shows what every process wrote."""
    report = yield
    group = item.config.stash.get(_GROUP, None)
    if group is not None and report.failed:  # type: ignore[attr-defined]
        report.sections.extend(group.reports())  # type: ignore[attr-defined]
    return report
