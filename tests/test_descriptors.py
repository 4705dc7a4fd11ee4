"""As many open files as connections take, where the system lets us."""

from __future__ import annotations

import resource

import pytest

from proxy.descriptors import make_room

INFINITE = resource.RLIM_INFINITY


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit of this process, kept in a list instead of in the kernel: the last is the one in force."""
    kept: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: kept[-1] if what == resource.RLIMIT_NOFILE else None)
    monkeypatch.setattr(resource, "setrlimit", lambda what, limit: kept.append(limit))
    return kept


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((1024, 1_000_000), (20_256, 1_000_000)),
        ((1024, INFINITE), (20_256, INFINITE)),
        ((1024, 20_256), (20_256, 20_256)),
        ((20_256, 20_256), (20_256, 20_256)),
        ((100_000, 1_000_000), (100_000, 1_000_000)),
        ((INFINITE, INFINITE), (INFINITE, INFINITE)),
    ],
)
def test_the_limit_is_raised_to_what_is_needed_and_never_lowered(
    limits: list[tuple[int, int]], before: tuple[int, int], after: tuple[int, int]
) -> None:
    limits.append(before)
    assert make_room(10_000) is None
    assert limits[-1] == after


@pytest.mark.parametrize(("hard", "room"), [(4096, "1920"), (100, "0")])
def test_what_is_lacking_is_said(limits: list[tuple[int, int]], hard: int, room: str) -> None:
    limits.append((50, hard))
    said = make_room(10_000)
    assert said is not None
    assert limits[-1] == (hard, hard)
    for part in (f"only {hard} files", f"some {room} connections", "20256", "LimitNOFILE=", "limits.max_connections"):
        assert part in said


def test_for_real() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))
        assert make_room(30) is None
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (316, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
