"""TLS towards servers: whom it trusts, what it shows, and how it learns of new certificates."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from proxy.errors import UpstreamFailed, UpstreamProblem
from proxy.pool import Pool
from proxy.upstream_settings import Server, UpstreamTls
from proxy.upstream_tls import ClientTls, reason_of
from tests.certificates import Authority
from tests.loops import run

T = TypeVar("T")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def table(**values: Any) -> UpstreamTls:
    return UpstreamTls.model_validate({key: str(value) for key, value in values.items()})


@asynccontextmanager
async def listening(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server that lets clients in and waits for them to leave."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def connect(
    context: ssl.SSLContext | None, tls: UpstreamTls | None, host: str = "127.0.0.1"
) -> UpstreamFailed | None:
    """Connect to a server with `context` as a route with `tls` would; what came of it, None when all went well."""
    async with listening(context) as port:
        pool = Pool(Server(f"https://{host}:{port}", tls), 5.0)
        try:
            connection = await pool.connect()
        except UpstreamFailed as error:
            return error
        transport = connection._transport
        assert transport is not None
        assert transport.get_extra_info("ssl_object").version() in ("TLSv1.2", "TLSv1.3")
        connection.abort()
        return None


class TestTrust:
    def test_an_authority_of_ones_own(self, authority: Authority) -> None:
        assert run(connect(authority.server("127.0.0.1"), table(ca=authority.file))) is None

    def test_a_name(self, authority: Authority) -> None:
        assert run(connect(authority.server("localhost"), table(ca=authority.file), "localhost")) is None

    def test_another_name_when_that_is_said(self, authority: Authority) -> None:
        tls = table(ca=authority.file, server_name="app.internal")
        assert run(connect(authority.server("app.internal"), tls)) is None

    @pytest.mark.parametrize(
        ("names", "expired", "said"),
        [
            (("127.0.0.1",), True, "certificate has expired"),
            (("10.0.0.1",), False, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
            (("app.internal",), False, "IP address mismatch, certificate is not valid for '127.0.0.1'."),
        ],
    )
    def test_a_certificate_that_does_not_hold(
        self, authority: Authority, names: tuple[str, ...], expired: bool, said: str
    ) -> None:
        failure = run(connect(authority.server(*names, expired=expired), table(ca=authority.file)))
        assert failure is not None
        assert failure.problem is UpstreamProblem.TLS
        assert failure.retry_safe
        assert str(failure) == f"its certificate is not accepted: {said}"

    def test_the_wrong_name(self, authority: Authority) -> None:
        failure = run(connect(authority.server("127.0.0.1"), table(ca=authority.file, server_name="app.internal")))
        assert str(failure) == (
            "its certificate is not accepted: Hostname mismatch, certificate is not valid for 'app.internal'."
        )

    def test_an_authority_that_nobody_knows(self, authority: Authority) -> None:
        """Without a table the system's authorities are trusted, and this one is not among them."""
        failure = run(connect(authority.server("127.0.0.1"), None))
        assert str(failure) == "its certificate is not accepted: unable to get local issuer certificate"

    def test_the_systems_authorities_count_for_nothing_beside_ones_own(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        other = Authority(tmp_path, "other")
        failure = run(connect(authority.server("127.0.0.1"), table(ca=other.file)))
        assert failure is not None
        assert failure.problem is UpstreamProblem.TLS

    def test_any_certificate_only_when_that_is_said_in_full(self, authority: Authority) -> None:
        tls = table(insecure_skip_verify="true")
        assert run(connect(authority.server("app.internal", expired=True), tls)) is None

    def test_a_server_without_tls(self, authority: Authority) -> None:
        async def plain() -> UpstreamFailed | None:
            async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                with pytest.raises(UpstreamFailed) as caught:
                    await Pool(Server(url, table(ca=authority.file)), 5.0).connect()
                return caught.value

        failure = run(plain())
        assert failure is not None
        assert failure.problem is UpstreamProblem.TLS
        assert str(failure) == "it does not speak TLS there"

    def test_a_server_that_hangs_up_during_the_handshake(self) -> None:
        async def hang_up() -> UpstreamFailed:
            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.read(1)
                writer.transport.abort()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            async with server:
                url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
                with pytest.raises(UpstreamFailed) as caught:
                    await Pool(Server(url), 5.0).connect()
                return caught.value

        failure = run(hang_up())
        assert failure.problem is UpstreamProblem.TLS
        assert str(failure) == "it closed the connection during the handshake"

    def test_a_handshake_that_does_not_end(self) -> None:
        async def hang(silent: socket.socket) -> UpstreamFailed:
            with pytest.raises(UpstreamFailed) as caught:
                await Pool(Server(f"https://127.0.0.1:{silent.getsockname()[1]}"), 0.1).connect()
            return caught.value

        with socket.create_server(("127.0.0.1", 0)) as silent:
            failure = run(hang(silent))
        assert failure.problem is UpstreamProblem.CONNECT_TIMEOUT
        assert str(failure) == "no connection within 0.1 s"


class TestClientCertificates:
    def test_are_shown(self, authority: Authority) -> None:
        cert, key = authority.issue("client", "postern")
        tls = table(ca=authority.file, client_cert=cert, client_key=key)
        assert run(connect(authority.server("127.0.0.1", clients=authority.file), tls)) is None

    def test_beside_the_systems_authorities(self, authority: Authority) -> None:
        cert, key = authority.issue("client", "postern")
        failure = run(connect(authority.server("127.0.0.1"), table(client_cert=cert, client_key=key)))
        assert str(failure) == "its certificate is not accepted: unable to get local issuer certificate"


def context_of(tls: UpstreamTls) -> ssl.SSLContext:
    return ClientTls(tls, "app").context()


class TestFiles:
    def test_that_are_missing_are_named(self, tmp_path: Path) -> None:
        missing = tmp_path / "none.pem"
        with pytest.raises(UpstreamFailed, match=rf"{missing} cannot be used: No such file or directory") as caught:
            context_of(table(ca=missing))
        assert caught.value.problem is UpstreamProblem.TLS

    def test_that_hold_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "ca.pem").write_text("hunter2")
        with pytest.raises(UpstreamFailed, match="cannot be used: ") as caught:
            context_of(table(ca=tmp_path / "ca.pem"))
        assert "hunter2" not in str(caught.value)

    def test_a_key_with_a_password_asks_nobody_for_it(self, authority: Authority) -> None:
        cert, key = authority.issue("client", "postern", password=b"hunter2")
        with pytest.raises(UpstreamFailed, match="cannot be used: "):
            context_of(table(client_cert=cert, client_key=key))

    def test_a_key_of_another_certificate(self, authority: Authority) -> None:
        cert, _ = authority.issue("client", "postern")
        _, key = authority.issue("other", "postern")
        with pytest.raises(UpstreamFailed, match="cannot be used: key values mismatch"):
            context_of(table(client_cert=cert, client_key=key))

    def test_are_read_once_while_they_stay_as_they_are(self, authority: Authority) -> None:
        tls = ClientTls(table(ca=authority.file), "app")
        assert tls.context() is tls.context()

    def test_are_read_again_when_they_change(self, authority: Authority, tmp_path: Path) -> None:
        async def renew() -> None:
            async with listening(authority.server("127.0.0.1")) as port:
                other = Authority(tmp_path, "other")
                pool = Pool(Server(f"https://127.0.0.1:{port}", table(ca=other.file)), 5.0)
                with pytest.raises(UpstreamFailed):
                    await pool.connect()
                (tmp_path / "new").write_bytes(authority.file.read_bytes())
                (tmp_path / "new").replace(other.file)
                (await pool.connect()).abort()

        run(renew())

    def test_that_break_do_not_take_the_last_good_ones_away(
        self, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        tls = ClientTls(table(ca=authority.file), "app")
        good = tls.context()
        content = authority.file.read_bytes()
        authority.file.write_text("")
        assert tls.context() is good
        assert tls.context() is good
        assert len(caplog.records) == 1, "said once, not for every connection"
        authority.file.unlink()
        assert tls.context() is good
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records][1:] == [
            "No such file or directory; those read before serve on"
        ]
        authority.file.write_bytes(content)
        os.utime(authority.file, ns=(1, 1))
        assert tls.context() is not good


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (OSError(), "OSError"),
        (ssl.SSLError(1, "x"), "unknown error"),
    ],
)
def test_errors_in_a_few_words(error: OSError, said: str) -> None:
    assert reason_of(error) == said
