"""Ways to the Redis servers: URLs, certificates, users, masters that Sentinels name."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection

from proxy.errors import StoreUnavailable
from proxy.session import Miss, Session
from proxy.session_cluster import Cluster
from proxy.session_servers import OneServer, Reach, SentinelServer, all_of, open_servers
from tests.e2e.processes import free_port
from tests.redis_groups import SentinelSet, sentinel_set, text
from tests.redis_server import RedisServer, redis_server
from tests.redis_worlds import Load, hears, known, sign_in, store_at, until, workers

PROMISED_SECONDS = Reach().patience + 3


# -- URLs


@pytest.mark.parametrize(
    ("url", "kind", "options"),
    [
        ("redis://h", Connection, {"host": "h", "socket_timeout": None, "socket_connect_timeout": 1.0}),
        ("redis://u:p%40@h:7/3", Connection, {"host": "h", "port": 7, "db": 3, "username": "u", "password": "p@"}),
        ("redis://:p@h", Connection, {"password": "p"}),
        (
            "redis://h?socket_timeout=9&decode_responses=true",
            Connection,
            {"socket_timeout": 9.0, "decode_responses": False},
        ),
        ("rediss://h?ssl_ca_certs=/ca", SSLConnection, {"host": "h", "ssl_ca_certs": "/ca"}),
        ("unix://u:p@/run/r.sock?db=2", UnixDomainSocketConnection, {"path": "/run/r.sock", "db": 2, "username": "u"}),
    ],
)
def test_one_server(url: str, kind: type, options: dict[str, Any]) -> None:
    async def conversation() -> None:
        servers = open_servers(url, Reach())
        assert isinstance(servers, OneServer)
        pool = servers.masters()[0]._pool
        assert pool.connection_class is kind
        assert options.items() <= pool.connection_kwargs.items()
        connection = servers.masters()[0].reporting_connection()
        assert isinstance(connection, kind)
        assert connection.protocol == 3
        await servers.close()

    asyncio.run(conversation())


def test_several_sentinels() -> None:
    async def conversation() -> None:
        url = "redis+sentinel://u:p@a,b:26380,[::1]:1/my%20master/3?sentinel_username=s&sentinel_password=sp"
        servers = open_servers(url, Reach(connections=7))
        server = servers.masters()[0]
        assert isinstance(server, SentinelServer)
        assert server.name == "master my master"
        asked = [it.connection_pool.connection_kwargs for it in server._sentinels._clients]
        assert server._sentinels.places == [("a", 26379), ("b", 26380), ("::1", 1)]
        assert {(it["username"], it["password"]) for it in asked} == {("s", "sp")}
        assert {"username": "u", "password": "p", "db": 3}.items() <= server._pool.connection_kwargs.items()
        assert server._pool.max_connections == 7
        await servers.close()
        secure = open_servers("rediss+sentinel://a/m?ssl_ca_certs=/ca", Reach()).masters()[0]
        assert isinstance(secure, SentinelServer)
        assert issubclass(secure._pool.connection_class, SSLConnection)
        assert issubclass(secure._sentinels._clients[0].connection_pool.connection_class, SSLConnection)
        assert secure._sentinels._clients[0].connection_pool.connection_kwargs["ssl_ca_certs"] == "/ca"
        await secure.close()

    asyncio.run(conversation())


def test_several_cluster_nodes() -> None:
    async def conversation() -> None:
        servers = open_servers("rediss+cluster://u:p@a:7000,b,[::1]:1/0?ssl_ca_certs=/ca&max_connections=3", Reach())
        assert isinstance(servers, Cluster)
        assert servers._seeds == [("a", 7000), ("b", 6379), ("::1", 1)]
        assert {"username": "u", "password": "p", "ssl_ca_certs": "/ca"}.items() <= servers._options.items()
        assert servers._limit == 3
        await servers.close()

    asyncio.run(conversation())


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1", "", "redis://:p4ss@h?bogus=1", "redis://h:port/0", "redis://h?socket_timeout=soon"),
        *(
            "redis://:p4ss@h:99999999999x/0",
            "rediss://h?ssl_cert_reqs=perhaps",
            "redis+sentinel://h",
            "redis+sentinel:///m",
        ),
        *("redis+sentinel://h/m/x", "redis+sentinel://:p4ss@h:x/m", "redis+cluster://h/3", "redis+cluster://"),
        *("redis+cluster://:p4ss@h?bogus=1", "redis+magic://h", "redis+sentinel://h/m?bogus=1", "redis+cluster://@:1"),
    ],
)
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(ValueError, match="Redis URL") as caught:
        store_at(url)
    assert "p4ss" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_all_are_done_before_a_failure_is_raised() -> None:
    done: list[int] = []

    async def later(number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
        done.append(number)
        if number % 2:
            raise ValueError(str(number))

    async def conversation() -> None:
        with pytest.raises(ValueError, match="3"):
            await all_of([later(3), later(1), later(4)])
        assert done == [1, 3, 4]
        await all_of([later(2)])

    asyncio.run(conversation())


# -- users and certificates


def test_a_user_with_only_the_rights_it_needs() -> None:
    """What docs/sessions.md tells to grant is enough, changes reported included."""
    with redis_server() as server:
        rights = [
            "~postern:*",
            "resetchannels",
            "-@all",
            "+@connection",
            "-client|kill",
            "-client|list",
            "+@read",
            "-keys",
        ]
        rights += [
            "+@hash",
            "+@sortedset",
            "+set",
            "+get",
            "+del",
            "+exists",
            "+type",
            "+pexpire",
            "+eval",
            "+role",
            "+ping",
        ]
        server.do("ACL", "SETUSER", "postern", "on", ">pw", *rights)

        async def conversation() -> None:
            async with workers(server.url.replace("://", "://postern:pw@")) as (one, two):
                session, cookie = await sign_in(one)
                await known(two, cookie)
                assert len(await two.of_user("alice")) == 1
                assert [it.id async for it in two.everything()] == [session.id]
                mark = await one.claim("x", 5)
                assert mark is not None
                assert await one.extend("x", mark, 5)
                await one.release("x", mark)
                assert await one.end(session.id)
                await until(lambda: two.peek(cookie) is None)

        asyncio.run(conversation())


class Authority:
    """Makes certificates for 127.0.0.1, in files below `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        self.cert = self._sign("authority", self.key.public_key(), ca=True)
        self.ca = self._write("ca.pem", self.cert.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, expired: bool = False) -> tuple[str, str]:
        """The paths of a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._sign(name, key.public_key(), expired=expired)
        secret = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return (
            self._write(f"{name}.pem", cert.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}.key", secret),
        )

    def _sign(self, name: str, key: Any, *, ca: bool = False, expired: bool = False) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = self.name if ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        return (
            x509.CertificateBuilder(self.name, subject, key, x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=9))
            .not_valid_after(now + dt.timedelta(days=-1 if expired else 1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def _write(self, name: str, data: bytes) -> str:
        path = self.directory / name
        path.write_bytes(data)
        return str(path)


def test_both_sides_show_certificates(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server")
    own, own_key = authority.issue("gateway")
    options = (
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        authority.ca,
        "--tls-auth-clients",
        "yes",
    )
    with redis_server(*options, scheme="rediss") as server:

        async def conversation() -> None:
            query = f"?ssl_ca_certs={authority.ca}&ssl_certfile={own}&ssl_keyfile={own_key}"
            async with workers(server.url + query) as (one, two):
                session, cookie = await sign_in(one)
                await known(two, cookie)
                await one.end(session.id)
                await until(lambda: two.peek(cookie) is None)
            for lacking in ("", f"?ssl_ca_certs={authority.ca}"):
                await refused(server.url + lacking)

        asyncio.run(conversation())


@pytest.mark.parametrize("wrong", ["expired", "another authority's", "another name"])
def test_a_certificate_that_does_not_count(tmp_path: Path, wrong: str) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("server", expired=wrong == "expired")
    trusted = Authority(tmp_path / "..").ca if wrong == "another authority's" else authority.ca
    options = (
        "--tls-cert-file",
        cert,
        "--tls-key-file",
        key,
        "--tls-ca-cert-file",
        authority.ca,
        "--tls-auth-clients",
        "no",
    )
    with redis_server(*options, scheme="rediss", url_query=f"ssl_ca_certs={trusted}") as server:
        url = server.url.replace("127.0.0.1", "localhost") if wrong == "another name" else server.url
        asyncio.run(refused(url))


async def refused(url: str) -> None:
    store = store_at(url)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await store.load("1." + "a" * 22 + "." + "b" * 43)
    assert time.monotonic() - began < PROMISED_SECONDS
    await store.close()


# -- Sentinels


@pytest.fixture
def group() -> Iterator[SentinelSet]:
    with sentinel_set() as it:
        yield it


@pytest.mark.parametrize("how", ["killed", "frozen", "asked to go"])
def test_another_master_under_load(group: SentinelSet, how: str) -> None:
    async def conversation() -> None:
        async with workers(group.url) as stores:
            living = [(await sign_in(stores[0]))[1] for _ in range(20)]
            ended = [(await sign_in(stores[0])) for _ in range(20)]
            group.first.do("WAIT", 1, 5000)
            async with Load(stores, living, [cookie for _, cookie in ended]) as load:
                await asyncio.gather(*(stores[0].end(session.id) for session, _ in ended))
                load.wrong.clear()  # those that were still alive until now
                change_master(group, how)
                await until(lambda: group.master is group.second, within=30)
                await until(lambda: text(group.second.do("ROLE")[0]) == "master", within=30)
                await load.well_again()
                for store in stores:
                    await until(lambda store=store: hears(store), within=30)  # type: ignore[misc]  # mypy cannot infer it
                for cookie in living:
                    assert isinstance(await known(stores[1], cookie), Session)
                session, cookie = await sign_in(stores[0])
                await known(stores[1], cookie)
                await stores[0].end(session.id)
                await until(lambda: stores[1].peek(cookie) is None)
            assert load.wrong == []
            assert load.longest < PROMISED_SECONDS
            if how == "frozen":
                group.first.resume()

    asyncio.run(conversation())


def change_master(group: SentinelSet, how: str) -> None:
    if how == "killed":
        group.first.stop()
    elif how == "frozen":
        group.first.pause()
    else:
        with redis.Redis(port=group.ports[0]) as sentinel:
            sentinel.execute_command("SENTINEL FAILOVER", group.NAME)


def test_a_master_that_was_left_behind_is_not_believed(group: SentinelSet) -> None:
    """Cut off from the others it goes on as if nothing were; the Sentinels name another one."""

    async def conversation() -> None:
        async with workers(group.url, 1) as (store,):
            _, cookie = await sign_in(store)
            await known(store, cookie)
            server = store._records.servers.masters()[0]
            assert isinstance(server, SentinelServer)

            async def another(_: str) -> tuple[str, int]:
                return "127.0.0.1", group.second.port

            before = server.line
            server._sentinels.discover_master = another  # type: ignore[method-assign,assignment]
            assert before is not None
            await until(lambda: before.until < 0, within=30)
            assert store.peek(cookie) is Miss.MISS

    asyncio.run(conversation())


def test_no_sentinel_there(caplog: pytest.LogCaptureFixture) -> None:
    async def conversation() -> None:
        store = store_at(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{free_port()}/m")
        with caplog.at_level(logging.WARNING):
            await store.start()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            await store.load("1." + "a" * 22 + "." + "b" * 43)
        assert time.monotonic() - began < PROMISED_SECONDS
        await store.close()

    asyncio.run(conversation())
    assert "no session can be read yet" in caplog.text


def test_a_replica_takes_no_writes_and_is_left() -> None:
    """Behind a name that leads to another server by now, the next connection finds the right one."""
    with RedisServer() as old, RedisServer() as new:

        async def conversation() -> None:
            store = store_at(old.url)
            await store.ping()
            old.do("REPLICAOF", "127.0.0.1", new.port)
            with pytest.raises(StoreUnavailable, match="read only"):
                await sign_in(store)
            for connection in store._records.servers.masters()[0]._pool._available_connections:
                assert not connection.is_connected
                connection.port = new.port  # type: ignore[attr-defined]  # as a name would lead there
            await sign_in(store)
            assert new.do("DBSIZE") > 0
            await store.close()

        asyncio.run(conversation())


def test_a_question_that_is_tried_again_at_the_end_leaves_no_connection() -> None:
    def clients() -> bytes:
        return bytes(own_server.do("CLIENT", "LIST"))

    async def conversation() -> None:
        servers = open_servers(own_server.url, Reach())
        server = servers.masters()[0]
        await server.ask("PING")
        asking = asyncio.create_task(server.ask("BLPOP", "nothing", "1"))
        await until(lambda: b"cmd=blpop" in clients())
        await servers.close()  # redis-py takes the connection from under the question, and makes another for it
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: b" name=postern" not in clients())

    with redis_server() as own_server:
        asyncio.run(conversation())
