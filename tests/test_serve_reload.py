"""Other settings put into a gateway that runs: what holds from the next request on, and what goes on as it began."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path
from typing import Any

import pytest

from proxy import serve
from proxy.errors import CannotServe
from proxy.session_codec import Session
from proxy.settings import Settings, load
from tests.certificates import Authority
from tests.relay_world import Upstream, World, relay_world, run, settings_for

GET = b"GET /x HTTP/1.1\r\nHost: localhost:3000\r\n\r\n"
BEHIND = b"GET /x HTTP/1.1\r\nHost: localhost:3000\r\nX-Forwarded-For: 198.51.100.7\r\n\r\n"


def changed(world: World, **environ: str) -> Settings:
    """The settings of `world`, but for what `environ` says."""
    return settings_for(world.upstream.url, **environ)


async def another(text: bytes) -> Upstream:
    upstream = Upstream()
    upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))
    await upstream.start()
    return upstream


def test_the_next_request_on_a_connection_goes_by_the_new_routes() -> None:
    async def work() -> None:
        async with relay_world() as world:
            other = await another(b"other")
            client = await world.connect()
            assert (await client.ask(GET))[2] == b"hello"
            world.gateway.adopt(settings_for(other.url))
            assert (await client.ask(GET))[2] == b"other"
            assert world.gateway.relay.connections, "the connection was not dropped"
            await other.stop()

    run(work())


def test_a_request_under_way_ends_as_it_began() -> None:
    async def work() -> None:
        async with relay_world() as world:
            asked, go_on = asyncio.Event(), asyncio.Event()

            async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await world.upstream.head(reader)
                asked.set()
                await go_on.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

            world.upstream.script = script
            client = await world.connect()
            client.send(GET)
            await asked.wait()
            world.gateway.adopt(changed(world, POSTERN_ROUTE__0__ALLOW="signed-in", POSTERN_ROUTE__0__NAME="new"))
            go_on.set()
            assert (await client.response())[::2] == (200, b"hello")
            assert world.lines()[-1]["route"] == "app"
            status, _, _ = await client.ask(GET)
            assert status == 401

    run(work())


def test_a_tunnel_stays_open() -> None:
    async def work() -> None:
        async with relay_world() as world:

            async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await world.upstream.head(reader)
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
                while data := await reader.read(100):
                    writer.write(data)

            world.upstream.script = echo
            client = await world.connect()
            client.send(b"GET / HTTP/1.1\r\nHost: localhost:3000\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            assert b" 101 " in await client.head()
            world.gateway.adopt(settings_for("http://127.0.0.1:9"))
            client.send(b"ping")
            assert await client.exactly(4) == b"ping"

    run(work())


def test_whom_to_believe_holds_for_connections_that_are_open() -> None:
    async def work() -> None:
        async with relay_world() as world:
            client = await world.connect()
            seen = []
            for networks in ("", "127.0.0.0/8", ""):
                world.gateway.adopt(changed(world, POSTERN_TRUSTED_PROXIES=networks))
                await client.ask(BEHIND)
                seen.append(world.lines()[-1]["client"])
            assert seen == ["127.0.0.1", "198.51.100.7", "127.0.0.1"]

    run(work())


def test_limits_hold_for_connections_that_are_open() -> None:
    async def work() -> None:
        async with relay_world() as world:
            client = await world.connect()
            assert (await client.ask(GET))[0] == 200
            world.gateway.adopt(changed(world, POSTERN_LIMITS__URI_BYTES="256"))
            assert (await client.ask(GET.replace(b"/x", b"/" + b"x" * 300)))[0] == 414

    run(work())


def test_rules_and_headers_of_people_who_are_signed_in() -> None:
    async def work() -> None:
        async with relay_world(POSTERN_ROUTE__0__ALLOW="signed-in") as world:
            cookie = await world.sign_in(username="ann")
            ask = GET.replace(b"\r\n\r\n", b"\r\nCookie: " + cookie + b"\r\n\r\n")
            assert (await world.ask(ask))[0] == 200
            for number in range(5):
                headers = f'{{ set = {{ X-Number = "{number} {{username}}" }} }}'
                world.gateway.adopt(
                    changed(world, POSTERN_ROUTE__0__ALLOW="signed-in", POSTERN_ROUTE__0__HEADERS=headers)
                )
                assert (await world.ask(ask))[0] == 200
                assert b"X-Number: %d ann\r\n" % number in world.upstream.heads[-1]
            session = world.gateway.store.peek(cookie.decode().partition("=")[2])
            assert isinstance(session, Session)
            assert len(session.blocks) <= 2, "blocks of routes that are gone are not kept for ever"
            rules = '[{ usernames = ["bob"] }]'
            world.gateway.adopt(changed(world, POSTERN_ROUTE__0__ALLOW=rules))
            assert (await world.ask(ask))[0] == 403

    run(work())


def test_how_often_logto_is_asked_about_people() -> None:
    async def work() -> None:
        async with relay_world(POSTERN_LOGTO__RECHECK="1h") as world:
            world.gateway.adopt(changed(world, POSTERN_LOGTO__RECHECK="1m", POSTERN_SESSION__RENEWAL_GRACE="2m"))
            bounds = world.gateway.store.bounds
            assert (bounds.recheck, bounds.renewal_grace) == (60.0, 120.0)
            assert world.gateway.renewals._store.bounds is bounds

    run(work())


class TestWhatIsKept:
    def test_connections_to_servers_that_are_still_named(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                for number in range(3):
                    world.gateway.adopt(changed(world, POSTERN_ROUTE__0__NAME=f"app{number}"))
                    await world.ask(GET)
                assert world.upstream.connections == 1

        run(work())

    def test_connections_to_others_are_closed(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                await world.ask(GET)
                assert world.upstream.open == 1
                world.gateway.adopt(settings_for("http://127.0.0.1:9"))
                await world.until(lambda: world.upstream.open == 0)
                assert len(list(world.gateway.upstreams)) == 1

        run(work())

    def test_what_is_known_of_logto_unless_it_is_another(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                party = world.gateway.relying_party
                world.gateway.adopt(changed(world, POSTERN_ROUTE__0__NAME="other"))
                assert world.gateway.relying_party is party
                world.gateway.adopt(changed(world, LOGTO_APP_ID="another"))
                assert world.gateway.relying_party is not party

        run(work())

    @pytest.mark.parametrize("value", ["{access_token:https://api.example.com}", "{organizations}"])
    def test_and_not_when_a_route_needs_more_of_it(self, value: str) -> None:
        async def work() -> None:
            async with relay_world() as world:
                party = world.gateway.relying_party
                world.gateway.adopt(changed(world, POSTERN_ROUTE__0__HEADERS__SET=json.dumps({"X-Api": value})))
                assert world.gateway.relying_party is not party

        run(work())

    def test_that_the_worker_drains(self) -> None:
        async def work() -> None:
            async with relay_world(POSTERN_DRAIN__DELAY="60s") as world:
                world.server.stop()
                world.gateway.adopt(changed(world, POSTERN_DRAIN__DELAY="60s"))
                assert world.gateway.app.state.health.draining

        run(work())


def closings(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which relying parties are closed from now on, by the id of their application."""
    closed: list[str] = []
    close = type(gateway.relying_party).close

    async def noted(self: Any) -> None:
        closed.append(self._logto.app_id)
        await close(self)

    monkeypatch.setattr(type(gateway.relying_party), "close", noted)
    return closed


def test_an_earlier_relying_party_is_closed_when_sign_ins_of_its_time_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "RETIRE_SECONDS", 0.01)

    async def work() -> None:
        async with relay_world(LOGTO_APP_ID="first") as world:
            closed = closings(world.gateway, monkeypatch)
            world.gateway.adopt(changed(world, LOGTO_APP_ID="first", POSTERN_ROUTE__0__NAME="other"))
            world.gateway.adopt(changed(world, LOGTO_APP_ID="second"))
            await world.until(lambda: "first" in closed)
            assert set(closed) == {"first"}

    run(work())


def test_at_the_end_all_of_them_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> list[str]:
        async with relay_world(LOGTO_APP_ID="first") as world:
            closed = closings(world.gateway, monkeypatch)
            world.gateway.adopt(changed(world, LOGTO_APP_ID="second"))
        return closed

    assert set(run(work())) == {"first", "second"}


class TestWhatCannotBeUsed:
    @pytest.mark.parametrize(
        "environ",
        [
            {"POSTERN_TLS__CERT": "/nowhere/cert.pem", "POSTERN_TLS__KEY": "/nowhere/key.pem"},
            {"POSTERN_LOG__ACCESS": "/nowhere/access.log"},
        ],
    )
    def test_leaves_everything_as_it_was(self, environ: dict[str, str]) -> None:
        async def work() -> None:
            async with relay_world() as world:
                before, plan = world.gateway.front, world.gateway.relay.plan
                with pytest.raises(CannotServe):
                    world.gateway.adopt(changed(world, POSTERN_ROUTE__0__ALLOW="signed-in", **environ))
                assert world.gateway.front is before
                assert world.gateway.relay.plan is plan
                assert (await world.ask(GET))[0] == 200

        run(work())

    def test_prevents_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(CannotServe, match=r"log\.access"):
            serve.build(settings_for("http://127.0.0.1:9", POSTERN_LOG__ACCESS=f"{tmp_path}/no/such/folder"))


def test_the_log_goes_elsewhere(tmp_path: Path) -> None:
    async def work() -> None:
        async with relay_world() as world:
            gateway, paths = world.gateway, [tmp_path / "one", tmp_path / "two"]
            world.gateway.log = gateway.relay.log
            for path in paths:
                gateway.adopt(changed(world, POSTERN_LOG__ACCESS=str(path)))
                await world.ask(GET)
                gateway.log.flush()
                path.rename(path.with_suffix(".1"))
                gateway.reopen_logs()
                await world.ask(GET)
                gateway.log.flush()
                assert (path.read_text().count("\n"), path.with_suffix(".1").read_text().count("\n")) == (1, 1)
            gateway.adopt(changed(world, POSTERN_LOG__ACCESS="off"))
            await world.ask(GET)
            gateway.log.flush()
            gateway.reopen_logs()
            assert paths[1].read_text().count("\n") == 1

    run(work())


def test_a_log_that_cannot_be_opened_again_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with relay_world() as world:
            folder = tmp_path / "logs"
            folder.mkdir()
            world.gateway.adopt(changed(world, POSTERN_LOG__ACCESS=str(folder / "access.log")))
            folder.rename(tmp_path / "moved")
            world.gateway.reopen_logs()

    run(work())
    assert "the access log cannot be opened again: No such file" in caplog.text


def test_certificates_are_exchanged_for_new_connections(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def text(name: str) -> str:
        cert, key = authority.issue(name, "localhost")
        return (
            f'public_url = "https://localhost:3443"\ntls = {{ cert = "{cert}", key = "{key}" }}\n'
            '[logto]\nendpoint = "http://127.0.0.1:9"\napp_id = "a"\napp_secret = "s"\n'
            '[[route]]\nname = "app"\nupstream = "UPSTREAM"\nallow = "everyone"\n'
        )

    async def work() -> None:
        client_tls = ssl.create_default_context(cafile=authority.file)
        ask = GET.replace(b"3000", b"3443")
        async with relay_world(text("first")) as world:
            old = await world.connect(tls=client_tls)
            assert (await old.ask(ask))[0] == 200
            file = tmp_path / "postern.toml"
            file.write_text(text("second").replace("UPSTREAM", world.upstream.url))
            world.gateway.adopt(load(file, {}))
            new = await world.connect(tls=client_tls)
            names = [client.writer.get_extra_info("peercert")["subject"][0][0][1] for client in (old, new)]
            assert names == ["first", "second"]
            assert (await old.ask(ask))[0] == (await new.ask(ask))[0] == 200

    run(work())
