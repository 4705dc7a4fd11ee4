"""One OpenTelemetry span for each relayed request. Loaded only when the settings ask for it: it needs `postern[otel]`.

Whose trace a span belongs to follows the rule of X-Request-Id: a trusted proxy's is continued. Anybody else's begins anew, linked
to what the client said, or a client could write into traces that are none of its business, and choose what is sampled. The app
behind is told of the span in `traceparent` and `tracestate` (W3C Trace Context). Without spans these fields pass as they are.

Where spans go, how many, and under which name is told to the SDK by its own variables: OTEL_EXPORTER_OTLP_ENDPOINT,
OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES and so on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy.errors import CannotServe

if TYPE_CHECKING:
    from proxy.forwarding import Origin
    from proxy.http1 import RequestHead
    from proxy.routes import Route

_FIELDS: Final = frozenset((b"traceparent", b"tracestate"))
_METHODS: Final = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_LAST_SECONDS: Final = 3.0  # how long the end of the process may wait for the last spans to be taken
_propagator: Final = TraceContextTextMapPropagator()


class RequestSpan:
    """The span of one request. `fields` tells the app of it, ready for the wire."""

    __slots__ = ("_span", "fields")

    def __init__(self, span: Span) -> None:
        self._span = span
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, trace.set_span_in_context(span, Context()))
        self.fields = b"".join(b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in carrier.items())

    def end(self, status: int, outcome: str, received: int, sent: int) -> None:
        """The request has ended: `outcome` as in the access log, sizes in bytes of payload."""
        span = self._span
        span.set_attribute("postern.outcome", outcome)
        span.set_attribute("http.request.body.size", received)
        span.set_attribute("http.response.body.size", sent)
        if status:
            span.set_attribute("http.response.status_code", status)
        if outcome == "cut_short" or status >= 500:
            span.set_attribute("error.type", str(status) if status >= 500 else outcome)
            span.set_status(StatusCode.ERROR)
        span.end()


class Tracer:
    """Makes the spans of one worker."""

    def __init__(self, provider: trace.TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("postern")

    def begin(self, head: RequestHead, origin: Origin, route: Route, started_at: float) -> RequestSpan:
        """The span of a request that is about to be relayed; takes the client's trace fields off `head`.

        `started_at` is on the clock of `time.perf_counter`.
        """
        carrier = {
            name.decode(): head.values[name].decode("latin-1") for name in sorted(_FIELDS) if name in head.values
        }
        if carrier:
            head.fields = [field for field in head.fields if field[0].lower() not in _FIELDS]
            head.made = {}  # what has been made of the fields holds for them no longer
        sender = _propagator.extract(carrier, Context())
        theirs = trace.get_current_span(sender).get_span_context()
        links = [Link(theirs)] if theirs.is_valid and not origin.trusted else []
        known = head.method in _METHODS
        method = head.method.decode("ascii")
        span = self._tracer.start_span(
            f"{method if known else 'HTTP'} {route.path}",
            sender if origin.trusted else Context(),
            kind=SpanKind.SERVER,
            attributes=_attributes(head, origin, route, method if known else "_OTHER"),
            links=links,
            start_time=time.time_ns() - int((time.perf_counter() - started_at) * 1e9),
        )
        if not known:
            span.set_attribute("http.request.method_original", method)
        return RequestSpan(span)

    def close(self) -> None:
        """Send what is left, as far as it is taken."""
        shutdown = getattr(self._provider, "shutdown", None)
        if shutdown is not None:
            last = threading.Thread(target=shutdown, name="last spans", daemon=True)
            last.start()
            last.join(_LAST_SECONDS)


def _attributes(head: RequestHead, origin: Origin, route: Route, method: str) -> dict[str, str | int]:
    """What OpenTelemetry's HTTP conventions want, less the query: it may hold what is meant for the app alone."""
    scheme = origin.scheme.decode("latin-1")
    host, _, port = origin.name.rpartition(":") if origin.name.rpartition(":")[2].isdecimal() else (origin.name, "", "")
    return {
        "http.request.method": method,
        "http.route": route.path,
        "url.scheme": scheme,
        "url.path": head.path.decode("latin-1"),
        "server.address": host,
        "server.port": int(port) if port else 443 if scheme == "https" else 80,
        "client.address": origin.client,
        "network.protocol.version": f"1.{head.minor}",
        "user_agent.original": head.values.get(b"user-agent", b"").decode("latin-1"),
        "postern.route": route.name,
    }


def open_tracer(environ: Mapping[str, str] = os.environ) -> Tracer:
    """The tracer that the variables describe; whatever has set OpenTelemetry up for this process already is left as it is.

    Raises CannotServe.
    """
    present = trace.get_tracer_provider()
    if not isinstance(present, trace.ProxyTracerProvider):
        return Tracer(present)
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "postern"}))
    provider = TracerProvider(resource=resource)
    for name in environ.get("OTEL_TRACES_EXPORTER", "otlp").split(","):
        if name.strip() not in ("", "none"):
            provider.add_span_processor(BatchSpanProcessor(_exporter(name.strip(), environ)))
    trace.set_tracer_provider(provider)
    return Tracer(provider)


def _exporter(name: str, environ: Mapping[str, str]) -> SpanExporter:
    if name == "otlp":
        general = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not found:
        raise CannotServe(
            f"tracing.enabled: no OpenTelemetry exporter called {name} is installed (OTEL_TRACES_EXPORTER)"
        )
    exporter: SpanExporter = found[0].load()()
    return exporter
