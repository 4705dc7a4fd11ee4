"""The way to a server: names looked up, several addresses tried, and what becomes of those that lose."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop

from proxy import dialing
from proxy.dialing import Address, Dialer, first_of, interleaved
from tests.loops import run

T = TypeVar("T")
PATIENCE = 10.0  # seconds


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose resolver does as it is told: real names cannot be changed here, nor a real resolver stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.script: list[list[Address] | OSError] = []
        self.lookups = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.clock = 0.0

    def time(self) -> float:
        return super().time() + self.clock

    async def getaddrinfo(self, *_args: Any, **_options: Any) -> list[Any]:
        self.lookups += 1
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        await self.gate.wait()
        if isinstance(answer, OSError):
            raise answer
        return [(family, socket.SOCK_STREAM, 6, "", address) for family, address in answer]


def resolving(work: Coroutine[Any, Any, T], *answers: list[Address] | OSError) -> tuple[T, Loop]:
    """On a loop whose resolver gives `answers`, the last one again and again."""
    loops: list[Loop] = []

    def factory() -> Loop:
        loops.append(Loop())
        loops[0].script = list(answers)
        return loops[0]

    return run(work, within=PATIENCE, loop=factory), loops[0]


def address(of: socket.socket) -> Address:
    return socket.AF_INET, of.getsockname()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@contextlib.contextmanager
def deaf() -> Iterator[socket.socket]:
    """A server that lets nobody in: its backlog is full, and the kernel drops whoever else knocks."""
    with socket.socket() as server, contextlib.ExitStack() as held:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            client = held.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server


def nobody() -> Address:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return address(server)


async def dialled(dialer: Dialer) -> Any:
    with await dialer.dial() as connected:
        return connected.getpeername()


def test_an_address_needs_no_lookup(listener: socket.socket) -> None:
    host, port = listener.getsockname()
    peer, loop = resolving(dialled(Dialer(host, port)), OSError())
    assert peer == (host, port)
    assert loop.lookups == 0


def test_nor_does_the_event_loop_that_serves_look_it_up(listener: socket.socket) -> None:
    """uvloop's own `sock_connect` does, in a thread, for every connection."""

    class Loop(uvloop.Loop):
        async def getaddrinfo(self, *_args: Any, **_options: Any) -> list[Any]:
            raise AssertionError("an address has been looked up")

    async def both() -> None:
        assert await dialled(Dialer(*listener.getsockname())) == listener.getsockname()
        with pytest.raises(ConnectionRefusedError, match="refused"):
            await Dialer(*nobody()[1][:2]).dial()

    run(both(), within=PATIENCE, loop=Loop)


def test_addresses_of_both_families_are_known_as_such() -> None:
    assert dialing._literal("192.0.2.1", 80) == (socket.AF_INET, ("192.0.2.1", 80))
    assert dialing._literal("2001:db8::1", 80) == (socket.AF_INET6, ("2001:db8::1", 80, 0, 0))
    assert dialing._literal("app.internal", 80) is None


def test_a_name(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert run(dialled(Dialer("localhost", port))) == ("127.0.0.1", port)


def test_the_socket_does_not_wait_for_more_to_send(listener: socket.socket) -> None:
    async def nodelay() -> int:
        with await Dialer(*listener.getsockname()).dial() as connected:
            assert not connected.getblocking()
            return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    assert run(nodelay())


def test_nobody_listens() -> None:
    host, port = nobody()[1][:2]
    with pytest.raises(ConnectionRefusedError):
        run(dialled(Dialer(host, port)))


def test_a_name_that_leads_nowhere() -> None:
    with pytest.raises(socket.gaierror):
        resolving(dialled(Dialer("app", 80)), socket.gaierror(socket.EAI_NONAME, "no such name"))


def test_a_name_without_addresses() -> None:
    with pytest.raises(OSError, match="no address"):
        resolving(dialled(Dialer("app", 80)), [])


class TestUnixSockets:
    def test_one_that_listens(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            assert run(dialled(Dialer("", 80, path))) == path

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            run(dialled(Dialer("", 80, str(tmp_path / "s"))))

    def test_one_whose_backlog_is_full_is_waited_for(self, tmp_path: Path) -> None:
        path = str(tmp_path / "s")

        async def wait() -> None:
            with contextlib.ExitStack() as held:
                server = held.enter_context(socket.socket(socket.AF_UNIX))
                server.bind(path)
                server.listen(0)
                held.enter_context(await Dialer("", 80, path).dial())
                late = asyncio.ensure_future(Dialer("", 80, path).dial())
                await asyncio.sleep(3 * dialing._BACKLOG_FULL)
                assert not late.done()
                held.enter_context(server.accept()[0])
                held.enter_context(await late)

        run(wait())


class TestNames:
    def test_are_looked_up_again_after_a_while(self, listener: socket.socket) -> None:
        async def twice() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            dialer = Dialer("app", 80)
            for _ in range(3):
                await dialled(dialer)
            assert loop.lookups == 1
            loop.clock += dialing.KNOWN_SECONDS
            await dialled(dialer)
            assert loop.lookups == 2

        resolving(twice(), [address(listener)])

    def test_are_looked_up_again_when_nobody_is_there_any_more(self, listener: socket.socket) -> None:
        async def moved() -> None:
            dialer = Dialer("app", 80)
            with pytest.raises(ConnectionRefusedError):
                await dialled(dialer)
            assert await dialled(dialer) == listener.getsockname()

        resolving(moved(), [nobody()], [address(listener)])

    def test_are_looked_up_once_for_all_who_wait(self, listener: socket.socket) -> None:
        async def crowd() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            loop.gate.clear()
            dialer = Dialer("app", 80)
            waiting = [asyncio.ensure_future(dialled(dialer)) for _ in range(5)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            loop.gate.set()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert isinstance(found[0], asyncio.CancelledError)
            assert found[1:] == [listener.getsockname()] * 4
            assert loop.lookups == 1

        resolving(crowd(), [address(listener)])

    def test_a_failed_lookup_that_nobody_waits_for_disturbs_nobody(self) -> None:
        async def left_alone() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            complaints: list[Any] = []
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            loop.gate.clear()
            dialer = Dialer("app", 80)
            waiting = asyncio.ensure_future(dialled(dialer))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
            loop.gate.set()
            while dialer._lookup is not None:
                await asyncio.sleep(0)
            assert complaints == []

        resolving(left_alone(), socket.gaierror(socket.EAI_NONAME, "no such name"))

    def test_a_lookup_ends_with_the_loop(self) -> None:
        async def leave() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            loop.gate.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(dialled(Dialer("app", 80)), 0.01)

        resolving(leave(), [nobody()])

    def test_known_addresses_outlive_a_resolver_that_does_not_answer(self, listener: socket.socket) -> None:
        async def outage() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            dialer = Dialer("app", 80)
            await dialled(dialer)
            loop.clock += dialing.KNOWN_SECONDS
            assert await dialled(dialer) == listener.getsockname()
            assert loop.lookups == 2

        resolving(outage(), [address(listener)], socket.gaierror(socket.EAI_AGAIN, "try again"))

    def test_but_not_a_resolver_that_says_no(self, listener: socket.socket) -> None:
        async def gone() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, Loop)
            dialer = Dialer("app", 80)
            await dialled(dialer)
            loop.clock += dialing.KNOWN_SECONDS
            with pytest.raises(socket.gaierror):
                await dialled(dialer)

        resolving(gone(), [address(listener)], socket.gaierror(socket.EAI_NONAME, "no such name"))


class TestSeveralAddresses:
    def test_take_turns_by_family(self) -> None:
        one, two = (socket.AF_INET, ("1.1.1.1", 80)), (socket.AF_INET, ("2.2.2.2", 80))
        six, seven = (socket.AF_INET6, ("::6", 80, 0, 0)), (socket.AF_INET6, ("::7", 80, 0, 0))
        assert interleaved([six, seven, one, six, two]) == (six, one, seven, two)
        assert interleaved([one]) == (one,)
        assert interleaved([]) == ()

    def test_one_that_refuses_costs_nothing(self, listener: socket.socket) -> None:
        async def connect() -> Any:
            with await first_of([nobody(), address(listener)]) as connected:
                return connected.getpeername()

        assert run(connect()) == listener.getsockname()

    def test_one_that_is_silent_costs_little(self, listener: socket.socket) -> None:
        async def connect(silent: socket.socket) -> Any:
            with await first_of([address(silent), address(silent), address(listener)]) as connected:
                return connected.getpeername()

        with deaf() as silent:
            assert run(connect(silent)) == listener.getsockname()

    def test_a_silent_one_is_still_waited_for_when_the_others_refuse(self) -> None:
        async def connect(silent: socket.socket) -> Any:
            connecting = asyncio.ensure_future(first_of([address(silent), nobody()]))
            await asyncio.wait([connecting], timeout=2 * dialing.HEAD_START)
            assert not connecting.done()
            silent.setblocking(False)
            deadline = time.monotonic() + PATIENCE
            while not connecting.done():
                assert time.monotonic() < deadline
                with contextlib.suppress(BlockingIOError):
                    silent.accept()[0].close()  # the kernel lets the next one in when it knocks again
                await asyncio.sleep(0.01)
            with connecting.result() as connected:
                return connected.getpeername()

        with deaf() as silent:
            assert run(connect(silent)) == silent.getsockname()

    def test_when_none_accepts_the_first_tells_why(self) -> None:
        with pytest.raises(ConnectionRefusedError):
            run(first_of([nobody(), nobody()]))

    def test_giving_up_leaves_no_socket_open(self) -> None:
        async def give_up(silent: socket.socket) -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(first_of([address(silent), address(silent)]), 0.05)

        with deaf() as silent:
            run(give_up(silent))

    def test_one_that_loses_by_a_hair_is_closed(self, listener: socket.socket) -> None:
        async def lose() -> None:
            attempt = asyncio.ensure_future(dialing._attempt(address(listener)))
            dialing._abandon(attempt)
            connected = asyncio.ensure_future(dialing._attempt(address(listener)))
            await asyncio.wait([attempt, connected])
            dialing._abandon(connected)
            assert attempt.cancelled()
            assert connected.result().fileno() == -1

        run(lose())
