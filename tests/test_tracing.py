"""Spans of relayed requests, made by the real SDK and looked at where an exporter gets them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from proxy.tracing import Tracer
from tests.relay_world import World, relay_world, run

ROOT = Path(__file__).resolve().parent.parent
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
THEIRS = f"00-{TRACE}-{SPAN}-01"
TRUSTED = {"POSTERN_TRUSTED_PROXIES": "127.0.0.0/8"}


def request(*fields: str, method: str = "GET", target: str = "/x") -> bytes:
    return "\r\n".join((f"{method} {target} HTTP/1.1", "Host: localhost:3000", *fields, "", "")).encode()


@asynccontextmanager
async def traced(**environ: str) -> AsyncIterator[tuple[World, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with relay_world(**environ) as world:
        world.gateway.relay.tracer = Tracer(provider)
        yield world, exporter


async def only(world: World, exporter: InMemorySpanExporter) -> tuple[ReadableSpan, dict[str, Any]]:
    """The one span that was made, and its attributes."""
    await world.until(lambda: bool(exporter.get_finished_spans()))
    (span,) = exporter.get_finished_spans()
    return span, dict(span.attributes or {})


def passed_on(world: World, name: bytes) -> list[str]:
    """The values of a field, as the app got it."""
    lines = (line.partition(b": ") for line in world.upstream.heads[-1].split(b"\r\n"))
    return [value.decode() for found, _, value in lines if found.lower() == name]


def test_a_request_is_a_server_span_with_the_attributes_of_the_conventions() -> None:
    async def work() -> None:
        async with traced() as (world, exporter):
            ask = request("User-Agent: tests/1", "Content-Length: 4", method="POST", target="/x?code=secret") + b"body"
            assert (await world.ask(ask))[0] == 200
            span, attributes = await only(world, exporter)
            assert (span.name, span.kind, span.parent) == ("POST /", SpanKind.SERVER, None)
            assert attributes == {
                "http.request.method": "POST",
                "http.route": "/",
                "url.scheme": "http",
                "url.path": "/x",
                "server.address": "localhost",
                "server.port": 3000,
                "client.address": "127.0.0.1",
                "network.protocol.version": "1.1",
                "user_agent.original": "tests/1",
                "postern.route": "app",
                "postern.outcome": "everyone",
                "http.request.body.size": 4,
                "http.response.body.size": 5,
                "http.response.status_code": 200,
            }
            assert span.status.status_code is StatusCode.UNSET
            assert span.start_time is not None
            assert span.end_time is not None
            assert 0 < span.end_time - span.start_time < 60e9

    run(work())


def test_no_secret_is_in_a_span() -> None:
    async def work() -> str:
        async with traced(POSTERN_ROUTE__0__ALLOW="signed-in") as (world, exporter):
            cookie = (await world.sign_in()).decode()
            ask = request(f"Cookie: {cookie}", "Authorization: Bearer hunter2", target="/x?token=hunter2")
            assert (await world.ask(ask))[0] == 200
            span, _ = await only(world, exporter)
            return str(span.to_json()) + cookie.partition("=")[2]

    text = run(work())
    assert "hunter2" not in text
    assert text.count(text[-30:]) == 1, "the cookie is only where this test has put it"


class TestWhoseTrace:
    def test_a_trusted_proxys_is_continued(self) -> None:
        async def work() -> None:
            async with traced(**TRUSTED) as (world, exporter):
                await world.ask(request(f"traceparent: {THEIRS}", "tracestate: vendor=1"))
                span, _ = await only(world, exporter)
                assert span.parent is not None
                assert f"{span.context.trace_id:032x}" == TRACE
                assert f"{span.parent.span_id:016x}" == SPAN
                assert passed_on(world, b"traceparent") == [f"00-{TRACE}-{span.context.span_id:016x}-01"]
                assert passed_on(world, b"tracestate") == ["vendor=1"]

        run(work())

    def test_anybody_elses_is_only_linked_to(self) -> None:
        async def work() -> None:
            async with traced() as (world, exporter):
                await world.ask(request(f"TraceParent: {THEIRS}", "tracestate: vendor=1"))
                span, _ = await only(world, exporter)
                assert span.parent is None
                (link,) = span.links
                assert f"{link.context.trace_id:032x}" == TRACE
                (own,) = passed_on(world, b"traceparent")
                assert own.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
                assert TRACE not in own
                assert passed_on(world, b"tracestate") == []

        run(work())

    @pytest.mark.parametrize("nonsense", ["nonsense", "00-0-0-01", f"ff-{TRACE}-{SPAN}-01", "", "\xff" * 55])
    @pytest.mark.parametrize("environ", [{}, TRUSTED])
    def test_nonsense_is_nobodys(self, nonsense: str, environ: dict[str, str]) -> None:
        async def work() -> None:
            async with traced(**environ) as (world, exporter):
                ask = request("traceparent: X").replace(b"X", nonsense.encode("latin-1"))
                assert (await world.ask(ask))[0] == 200
                span, _ = await only(world, exporter)
                assert (span.parent, tuple(span.links)) == (None, ())
                assert len(passed_on(world, b"traceparent")) == 1

        run(work())

    def test_a_client_cannot_take_the_field_away(self) -> None:
        async def work() -> None:
            async with traced() as (world, _):
                await world.ask(request(f"traceparent: {THEIRS}", "Connection: traceparent"))
                assert len(passed_on(world, b"traceparent")) == 1

        run(work())

    def test_without_spans_the_fields_pass_as_they_are(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                await world.ask(request(f"TraceParent: {THEIRS}", "tracestate: vendor=1, other=2", "baggage: a=b"))
                assert passed_on(world, b"traceparent") == [THEIRS]
                assert passed_on(world, b"tracestate") == ["vendor=1, other=2"]
                assert passed_on(world, b"baggage") == ["a=b"]

        run(work())


class TestHowItEnds:
    def test_a_server_that_does_not_answer(self) -> None:
        async def work() -> None:
            async with traced(POSTERN_ROUTE__0__UPSTREAM="http://127.0.0.1:9") as (world, exporter):
                assert (await world.ask(request()))[0] == 502
                span, attributes = await only(world, exporter)
                assert attributes["http.response.status_code"] == 502
                assert attributes["error.type"] == "502"
                assert attributes["postern.outcome"] == "upstream_refused"
                assert span.status.status_code is StatusCode.ERROR

        run(work())

    def test_an_answer_that_breaks_off(self) -> None:
        async def work() -> None:
            async with traced() as (world, exporter):
                world.upstream.answering(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal", then_close=True)
                client = await world.connect()
                client.send(request())
                await client.head()
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await client.exactly(9)
                span, attributes = await only(world, exporter)
                assert attributes["error.type"] == "cut_short"
                assert attributes["http.response.status_code"] == 200
                assert span.status.status_code is StatusCode.ERROR

        run(work())

    def test_an_app_that_says_404_has_not_failed(self) -> None:
        async def work() -> None:
            async with traced() as (world, exporter):
                world.upstream.answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                await world.ask(request())
                span, attributes = await only(world, exporter)
                assert "error.type" not in attributes
                assert span.status.status_code is StatusCode.UNSET

        run(work())

    def test_a_method_that_nobody_knows(self) -> None:
        async def work() -> None:
            async with traced() as (world, exporter):
                await world.ask(request(method="BREW"))
                span, attributes = await only(world, exporter)
                assert span.name == "HTTP /"
                assert attributes["http.request.method"] == "_OTHER"
                assert attributes["http.request.method_original"] == "BREW"

        run(work())

    def test_what_is_not_relayed_has_no_span(self) -> None:
        async def work() -> None:
            async with traced(POSTERN_ROUTE__0__ALLOW="signed-in") as (world, exporter):
                assert (await world.ask(request()))[0] == 401
                assert (await world.ask(request(target="/.postern/healthz")))[0] == 200
                assert exporter.get_finished_spans() == ()

        run(work())


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [
        ("localhost", "localhost", 80),
        ("localhost:8080", "localhost", 8080),
        ("[::1]:81", "[::1]", 81),
        ("[::1]", "[::1]", 80),
    ],
)
def test_the_address_that_was_asked(host: str, address: str, port: int) -> None:
    async def work() -> None:
        async with traced() as (world, exporter):
            await world.ask(request().replace(b"localhost:3000", host.encode()))
            _, attributes = await only(world, exporter)
            assert (attributes["server.address"], attributes["server.port"]) == (address, port)

    run(work())


class TestProviders:
    def test_one_that_makes_nothing(self) -> None:
        async def work() -> None:
            async with relay_world() as world:
                tracer = world.gateway.relay.tracer = Tracer(NoOpTracerProvider())
                assert (await world.ask(request(f"traceparent: {THEIRS}")))[0] == 200
                tracer.close()

        run(work())

    def test_one_that_hangs_does_not_hold_up_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("proxy.tracing._LAST_SECONDS", 0.05)
        let_go = threading.Event()

        class Hanging(TracerProvider):
            def shutdown(self) -> None:
                let_go.wait()

        Tracer(Hanging(shutdown_on_exit=False)).close()
        let_go.set()


OPENED = """
import json, os, sys
from opentelemetry import trace
from proxy.errors import CannotServe
from proxy.tracing import open_tracer
if "already" in sys.argv:
    from opentelemetry.sdk.trace import TracerProvider
    trace.set_tracer_provider(TracerProvider())
before = trace.get_tracer_provider()
try:
    tracer = open_tracer()
except CannotServe as error:
    print(json.dumps(str(error)))
    sys.exit()
provider = tracer._provider
processors = provider._active_span_processor._span_processors
print(json.dumps({
    "same": provider is before,
    "exporters": [type(processor.span_exporter).__name__ for processor in processors],
    "service": provider.resource.attributes["service.name"],
    "sampler": provider.sampler.get_description(),
}))
"""


BUILT = """
import json, sys
if "missing" in sys.argv:
    sys.modules["opentelemetry"] = None
from proxy.errors import CannotServe
from proxy.serve import build
from tests.relay_world import settings_for
try:
    print(json.dumps(build(settings_for("http://127.0.0.1:9")).relay.tracer is None))
    print(json.dumps(build(settings_for("http://127.0.0.1:9", POSTERN_TRACING__ENABLED="true")).relay.tracer is None))
except CannotServe as error:
    print(json.dumps(str(error)))
print(json.dumps(sorted(name for name in sys.modules if name.startswith("opentelemetry.sdk"))[:1]))
"""


class TestOpening:
    """In processes of their own: a process has one provider for all its life."""

    def opened(self, *arguments: str, **environ: str) -> Any:
        return self.said(OPENED, *arguments, **environ)[0]

    def said(self, code: str, *arguments: str, **environ: str) -> list[Any]:
        measuring = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        found = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **measuring, **environ},
            capture_output=True,
            text=True,
            check=True,
        )
        return [json.loads(line) for line in found.stdout.splitlines() if line[:1] in '{["tf']

    def test_what_the_variables_say(self) -> None:
        found = self.opened(
            OTEL_TRACES_EXPORTER="console,none", OTEL_SERVICE_NAME="gate", OTEL_TRACES_SAMPLER="always_off"
        )
        assert found == {
            "same": False,
            "exporters": ["ConsoleSpanExporter"],
            "service": "gate",
            "sampler": "AlwaysOffSampler",
        }

    def test_what_holds_without_them(self) -> None:
        assert self.opened(OTEL_TRACES_EXPORTER="none")["service"] == "postern"

    def test_what_was_set_up_already_is_left_alone(self) -> None:
        found = self.opened("already", OTEL_TRACES_EXPORTER="console")
        assert (found["same"], found["exporters"]) == (True, [])

    @pytest.mark.parametrize(
        ("environ", "name"),
        [
            ({"OTEL_TRACES_EXPORTER": "nonsense"}, "nonsense"),
            ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
            (
                {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
                "otlp_proto_http",
            ),
        ],
    )
    def test_an_exporter_that_is_not_installed(self, environ: dict[str, str], name: str) -> None:
        message = self.opened(**environ)
        assert f"no OpenTelemetry exporter called {name} is installed" in message

    def test_only_when_the_settings_ask_for_it(self) -> None:
        assert self.said(BUILT, OTEL_TRACES_EXPORTER="none") == [True, False, ["opentelemetry.sdk"]]

    def test_without_the_packages_the_gateway_does_not_start(self) -> None:
        without, message, loaded = self.said(BUILT, "missing")
        assert (without, loaded) == (True, [])
        assert "pip install 'postern[otel]'" in message
