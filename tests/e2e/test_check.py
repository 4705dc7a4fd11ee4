"""`postern check` says what is wrong with the surroundings, one line each, before anybody's users do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from proxy.sandbox import SANDBOX_APP_ID, SANDBOX_APP_SECRET
from tests.e2e.origin import Origin
from tests.e2e.processes import Processes, Sandbox, free_port, run_postern, start_redis


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def redis_url(group: Processes) -> str:
    return start_redis(group)[1]


@pytest.fixture
def good(origin: Origin, redis_url: str, sandbox: Sandbox) -> dict[str, str]:
    """Settings in whose surroundings all is well."""
    return {
        "POSTERN_PUBLIC_URL": sandbox.public_url,
        "POSTERN_UPSTREAM": origin.url,
        "LOGTO_ENDPOINT": sandbox.url,
        "LOGTO_APP_ID": SANDBOX_APP_ID,
        "LOGTO_APP_SECRET": SANDBOX_APP_SECRET,
        "REDIS_URL": redis_url,
    }


def test_all_is_well(good: Mapping[str, str], tmp_path: Path) -> None:
    done = run_postern("check", env=good, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("redis", "logto", "upstream"):
        assert word in done.stdout.lower()


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("POSTERN_UPSTREAM", "http://127.0.0.1:{closed}", ("upstream", "{closed}")),
        ("REDIS_URL", "redis://127.0.0.1:{closed}/0", ("redis", "{closed}")),
        ("LOGTO_ENDPOINT", "http://127.0.0.1:{closed}", ("logto", "{closed}")),
        ("LOGTO_ENDPOINT", "http://127.0.0.1:{logto}", ("issuer", "http://localhost:{logto}/oidc")),
        ("LOGTO_ENDPOINT", "{upstream}", ("logto", "{upstream}")),  # answers, but is no Logto
    ],
    ids=["upstream down", "redis down", "logto down", "issuer of another name", "no logto at all"],
)
def test_what_is_broken_is_named(
    good: Mapping[str, str], sandbox: Sandbox, tmp_path: Path, variable: str, value: str, words: tuple[str, ...]
) -> None:
    known = {"closed": str(free_port()), "logto": sandbox.url.rpartition(":")[2], "upstream": good["POSTERN_UPSTREAM"]}
    done = run_postern("check", env={**good, variable: value.format(**known)}, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert all(word.format(**known) in said or word.format(**known) in said.lower() for word in words), said
    assert "Traceback" not in said
    assert SANDBOX_APP_SECRET not in said


def test_everything_broken_is_told_at_once(good: Mapping[str, str], tmp_path: Path) -> None:
    closed = f"127.0.0.1:{free_port()}"
    broken = {
        "POSTERN_UPSTREAM": f"http://{closed}",
        "REDIS_URL": f"redis://{closed}",
        "LOGTO_ENDPOINT": f"http://{closed}",
    }
    done = run_postern("check", env={**good, **broken}, cwd=tmp_path)
    assert done.returncode == 1
    assert all(word in (done.stdout + done.stderr).lower() for word in ("redis", "logto", "upstream"))


def test_offline_asks_nobody(good: Mapping[str, str], tmp_path: Path) -> None:
    closed = f"127.0.0.1:{free_port()}"
    broken = {
        "POSTERN_UPSTREAM": f"http://{closed}",
        "REDIS_URL": f"redis://{closed}",
        "LOGTO_ENDPOINT": f"http://{closed}",
    }
    done = run_postern("check", "--offline", env={**good, **broken}, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_bad_settings_are_all_named_and_end_in_2(good: Mapping[str, str], tmp_path: Path) -> None:
    settings = {**good, "POSTERN_PUBLIC_URL": "ftp://nowhere/x", "POSTERN_UPSTREAM": "http://user:secretive@host/path"}
    done = run_postern("check", env=settings, cwd=tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    named = {line.partition(":")[0].partition("[")[0] for line in said.splitlines()}
    assert named == {"POSTERN_PUBLIC_URL", "POSTERN_UPSTREAM"}
    assert "secretive" not in said
