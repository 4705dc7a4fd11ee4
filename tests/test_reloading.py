"""Settings read again: from which files, when, and what of them stays as it was."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from proxy.reloading import FIXED, Source, Watch, merged
from proxy.settings import Settings, SettingsError
from proxy.tree import dotted

BASE = {
    "POSTERN_PUBLIC_URL": "https://apps.example.com",
    "POSTERN_UPSTREAM": "http://app:8080",
    "LOGTO_ENDPOINT": "https://auth.example.com",
    "LOGTO_APP_ID": "app",
    "LOGTO_APP_SECRET": "secret-of-the-app",
    "REDIS_URL": "redis://redis:6379/0",
}
NOWHERE = Path(os.devnull)


def settings(**environ: str) -> Settings:
    return Source(NOWHERE, {**BASE, **environ}).read()


class TestSource:
    def test_reading_again_gives_what_is_there_by_then(self, tmp_path: Path) -> None:
        file = tmp_path / "postern.toml"
        source = Source(file, BASE)
        file.write_text('prefix = "/.one"')
        assert source.read().prefix == "/.one"
        file.write_text('prefix = "/.two"')
        assert source.read().prefix == "/.two"
        file.write_text("prefix = [")
        with pytest.raises(SettingsError):
            source.read()

    def test_the_files_are_the_settings_secrets_and_certificate(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("s" * 32)
        environ = {
            **{name: value for name, value in BASE.items() if name != "LOGTO_APP_SECRET"},
            "LOGTO_APP_SECRET_FILE": str(secret),
            "POSTERN_SECRET_FILE": str(secret),
            "OTHER_FILE": "/etc/passwd",
            "REDIS_URL_FILE": "",
            "POSTERN_TLS__CERT": "/etc/cert.pem",
            "POSTERN_TLS__KEY": "/etc/key.pem",
        }
        source = Source(NOWHERE, environ)
        files = source.files(source.read())
        assert set(files) == {NOWHERE, secret, Path("/etc/cert.pem"), Path("/etc/key.pem")}

    @pytest.mark.parametrize(
        ("environ", "file"), [({}, "config/postern.toml"), ({"POSTERN_CONFIG": "/etc/x.toml"}, "/etc/x.toml")]
    )
    def test_the_file_that_nobody_named(self, environ: dict[str, str], file: str) -> None:
        assert Source(None, {**BASE, **environ}).files(settings()) == (Path(file),)


class TestWatch:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        file = tmp_path / "a"
        file.write_text("1")
        return file

    def test_a_change_counts_once_it_has_settled(self, file: Path) -> None:
        watch = Watch(lambda: [file])
        assert not watch.changed()
        file.write_text("12")
        assert not watch.changed(), "it may still be being written"
        file.write_text("123")
        assert not watch.changed()
        assert watch.changed()
        assert not watch.changed()

    def test_what_is_changed_and_changed_back_between_two_looks_is_no_change(self, file: Path) -> None:
        watch = Watch(lambda: [file])
        before = file.stat()
        file.write_text("2")
        assert not watch.changed()
        file.write_text("1")
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert not watch.changed()
        assert not watch.changed()

    def test_a_file_that_goes_and_comes_again(self, file: Path) -> None:
        watch = Watch(lambda: [file])
        file.unlink()
        assert [watch.changed() for _ in range(3)] == [False, True, False]
        file.write_text("1")
        assert [watch.changed() for _ in range(3)] == [False, True, False]

    def test_symlinks_that_are_swapped_as_kubernetes_does(self, tmp_path: Path) -> None:
        for version in ("one", "two"):
            (tmp_path / version).mkdir()
            (tmp_path / version / "postern.toml").write_text("the same size")
        (tmp_path / "..data").symlink_to("one")
        (tmp_path / "postern.toml").symlink_to("..data/postern.toml")
        watch = Watch(lambda: [tmp_path / "postern.toml"])
        assert not watch.changed()
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(tmp_path / "..data")
        assert [watch.changed() for _ in range(3)] == [False, True, False]

    def test_what_is_about_to_be_read_is_no_change_afterwards(self, file: Path) -> None:
        watch = Watch(lambda: [file])
        file.write_text("12")
        watch.known()
        assert not watch.changed()
        file.write_text("123")
        assert [watch.changed() for _ in range(3)] == [False, True, False]

    def test_other_files_are_no_change_by_themselves(self, file: Path, tmp_path: Path) -> None:
        files, other = [file], tmp_path / "b"
        watch = Watch(lambda: files)
        other.write_text("x")
        files.append(other)
        watch.renamed()
        assert [watch.changed() for _ in range(3)] == [False, False, False]
        other.write_text("xx")
        assert [watch.changed() for _ in range(3)] == [False, True, False]

    def test_a_change_at_the_same_time_is_not_lost(self, file: Path, tmp_path: Path) -> None:
        files, other = [file], tmp_path / "b"
        watch = Watch(lambda: files)
        file.write_text("12")
        files.append(other)
        watch.renamed()
        assert [watch.changed() for _ in range(3)] == [False, True, False]


CHANGES: dict[str, tuple[str, str]] = {
    "listen": ("POSTERN_LISTEN", "127.0.0.1:4000"),
    "workers": ("POSTERN_WORKERS", "3"),
    "reload": ("POSTERN_RELOAD", "watch"),
    "session.store": ("REDIS_URL", "redis://elsewhere:6379/0"),
    "session.idle": ("POSTERN_SESSION__IDLE", "1h"),
    "session.lifetime": ("POSTERN_SESSION__LIFETIME", "30d"),
    "session.outage_grace": ("POSTERN_SESSION__OUTAGE_GRACE", "60s"),
    "session.connect_timeout": ("POSTERN_SESSION__CONNECT_TIMEOUT", "3s"),
    "session.command_timeout": ("POSTERN_SESSION__COMMAND_TIMEOUT", "3s"),
    "session.connections": ("POSTERN_SESSION__CONNECTIONS", "8"),
    "session.retries": ("POSTERN_SESSION__RETRIES", "7"),
    "session.cache_entries": ("POSTERN_SESSION__CACHE_ENTRIES", "100"),
    "session.cache_bytes": ("POSTERN_SESSION__CACHE_BYTES", "1MiB"),
    "metrics": ("POSTERN_METRICS__LISTEN", "127.0.0.1:9464"),
    "tracing": ("POSTERN_TRACING__ENABLED", "true"),
}


class TestMerged:
    def test_every_fixed_key_is_tried(self) -> None:
        assert set(CHANGES) == {dotted(path) for path in FIXED}

    @pytest.mark.parametrize("key", CHANGES)
    def test_what_cannot_be_changed_stays_and_is_named(self, key: str) -> None:
        name, value = CHANGES[key]
        new = settings(**{name: value, "POSTERN_PREFIX": "/.other"})
        result, kept = merged(settings(), new)
        assert kept == (key,)
        assert result == settings(POSTERN_PREFIX="/.other")

    def test_all_of_it_at_once(self) -> None:
        new = settings(**dict(CHANGES.values()), POSTERN_SESSION__COOKIE__NAME="other")
        result, kept = merged(settings(), new)
        assert sorted(kept) == sorted(CHANGES)
        assert result == settings(POSTERN_SESSION__COOKIE__NAME="other")

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("POSTERN_TRUSTED_PROXIES", "10.0.0.0/8"),
            ("POSTERN_UPSTREAM", "http://other:1"),
            ("LOGTO_APP_SECRET", "another-secret"),
            ("POSTERN_LIMITS__HEAD_TIMEOUT", "1s"),
            ("POSTERN_LOG__LEVEL", "debug"),
            ("POSTERN_DRAIN__TIMEOUT", "1s"),
            ("POSTERN_LOGTO__RECHECK", "1m"),
            ("POSTERN_SESSION__RENEWAL_GRACE", "1m"),
        ],
    )
    def test_everything_else_may_change(self, name: str, value: Any) -> None:
        new = settings(**{name: value})
        assert merged(settings(), new) == (new, ())
        assert new != settings()
