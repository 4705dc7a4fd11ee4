"""Which route takes a request: exact host, then the longest wildcard, then any host; then the longest path; then file order.

Rules are judged by the canonical path, the target is forwarded as it came. Where another server could read that target as a
path with other rules, the match is ambiguous, and the gate refuses: see `paths.py` for what "could read" means. That there are
servers to which `/ADMIN` is `/admin` (Express, IIS) is part of it. A path that leads elsewhere within the same rules is none of
our business and passes untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote

from proxy.credentials import Programs
from proxy.header_settings import HeaderSettings, ResponseSettings, fold_header
from proxy.paths import PLAIN, interpretations, readings
from proxy.policy import Policy
from proxy.presets import opened
from proxy.rewriting import PathMap
from proxy.templating import Template

if TYPE_CHECKING:
    from proxy.settings import RouteSettings, Settings
    from proxy.upstream_settings import Server

__all__ = ["Match", "Route", "RouteTable", "interpretations", "normalise_host"]

# Clients choose hosts and paths: what is remembered of them is bounded in number and in size, and dropped as a whole.
_REMEMBERED: Final = 4096
_LONGEST_REMEMBERED: Final = 512

_ESCAPE: Final = re.compile("%[0-9A-F]{2}")


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """A route, ready for use.

    `path` covers itself and what is below it: `/admin` covers `/admin/x`, not `/administrator`. `header_remove` holds names
    folded: lower case, `_` as `-`. `servers` are the upstreams with all that is said about them, `mapping` is what becomes of
    paths on the way there. `body_bytes` bounds requests' bodies: 0 not at all, None as everywhere. `organization` is the one
    whose members alone it is for. `websocket_origins` are those of foreign pages that may open WebSockets with a session.
    `programs` is what it takes in a session's place, None where `Authorization` is the app's own. `encoding` is that of header
    values, None as everywhere. `logout` are the paths of the app's own sign-out, `login_cookies` those by
    which it knows people again. `around` is the route in which this one is opened to everyone: the app is told of nobody whom
    that does not let in, and in its words.
    """

    name: str
    host: str | None
    path: str
    upstreams: tuple[str, ...]
    policy: Policy
    header_set: tuple[tuple[str, Template], ...]
    header_remove: frozenset[str]
    index: int
    servers: tuple[Server, ...]
    mapping: PathMap | None
    preserve_host: bool
    body_bytes: int | None = None
    organization: str | None = None
    programs: Programs | None = None
    encoding: str | None = None
    logout: frozenset[str] = frozenset()
    login_cookies: frozenset[bytes] = frozenset()
    around: Route | None = None
    websocket_origins: frozenset[bytes] = frozenset()
    response_set: tuple[tuple[bytes, bytes], ...] = ()
    response_remove: frozenset[bytes] = frozenset()  # lower case

    @classmethod
    def from_settings(
        cls,
        index: int,
        route: RouteSettings,
        headers: HeaderSettings = HeaderSettings(),  # noqa: B008 -- frozen
        response: ResponseSettings = ResponseSettings(),  # noqa: B008 -- frozen
    ) -> Route:
        """The route that the `index`-th [[route]] describes; `headers` and `response` are for every route."""
        own = {fold_header(name) for name in (*route.headers.set, *route.headers.remove)}
        common = {name: value for name, value in headers.set.items() if fold_header(name) not in own}
        answered = {name.lower() for name in (*route.response.set, *route.response.remove)}
        answers = {name: value for name, value in response.set.items() if name.lower() not in answered}
        return cls(
            name=route.name,
            host=route.host,
            path=route.path,
            upstreams=route.upstream,
            policy=Policy.from_settings(route),
            header_set=tuple(
                (name, Template.parse(value, route.organization))
                for name, value in {**common, **route.headers.set}.items()
            ),
            header_remove=frozenset(map(fold_header, (*headers.remove, *route.headers.remove))),
            index=index,
            servers=route.servers,
            mapping=PathMap(route.strip_prefix, route.add_prefix) if route.strip_prefix or route.add_prefix else None,
            preserve_host=route.preserve_host,
            body_bytes=route.body_bytes,
            organization=route.organization,
            programs=Programs(route.name, frozenset(route.bearer), route.app_passwords, route.pass_authorization)
            if route.bearer or route.app_passwords
            else None,
            encoding=route.encoding,
            logout=frozenset(form for path in route.logout for form in (path, path.rstrip("/") + "/")),
            login_cookies=frozenset(name.encode() for name in route.login_cookies),
            websocket_origins=frozenset(origin.encode() for origin in route.websocket_origins),
            response_set=tuple(
                (name.encode(), value.encode()) for name, value in {**answers, **route.response.set}.items()
            ),
            response_remove=frozenset(name.lower().encode() for name in (*response.remove, *route.response.remove)),
        )

    def serves_with(self, other: Route) -> bool:
        """Whether what both routes lead to is one app, which both show in the same place."""
        return (self.upstreams, self.mapping, self.preserve_host) == (
            other.upstreams,
            other.mapping,
            other.preserve_host,
        )


def _open_to_everyone(route: RouteSettings, path: str) -> RouteSettings:
    """A part of `route` that its app guards itself, credentials included."""
    more = {"path": path, "name": f"{route.name}-open", "allow": "everyone", "deny": (), "organization": None}
    return route.model_copy(update={**more, "bearer": (), "app_passwords": False, "logout": ()})


class Match(NamedTuple):
    """What takes a request. `path` is the canonical one, for rules.

    `ambiguous`: somebody could read the target as a path that is not to be had, or by other rules; `other` is the route it
    could be mistaken for, None if there is none there.
    """

    route: Route | None
    path: str
    ambiguous: bool = False
    other: Route | None = None


class _Host:
    """The routes that requests for one host can take, the first that covers the path taking it."""

    __slots__ = ("_folded", "_prefixes", "uniform")

    def __init__(self, routes: Iterable[Route]) -> None:
        routes = tuple(routes)
        self._prefixes = tuple(
            (form, form.rstrip("/") + "/", route) for route in routes for form in _spellings(route.path)
        )
        self._folded = tuple((form.casefold(), below.casefold(), route) for form, below, route in self._prefixes)
        # One policy for every path there is: nothing can be mistaken for anything.
        self.uniform = (
            len({route.policy for route in routes}) == 1
            and any(route.path == "/" for route in routes)
            and not routes[0].policy.paths
        )

    def route(self, path: str) -> Route | None:
        for exact, below, route in self._prefixes:
            if path.startswith(below) or path == exact:
                return route
        return None

    def taken_for(self, route: Route, path: str) -> Route | None:
        """The route with other rules that `path`, of `route`, is below where letter case does not count; None: there is none.

        Where routes differ in nothing but letter case, the app is known to tell them apart. One that is open to everyone is
        nothing to be mistaken for: whoever may pass here may pass there.
        """
        if self.uniform:
            return None
        folded = path.casefold()
        for exact, below, other in self._folded:
            if folded.startswith(below) or folded == exact:
                harmless = other.policy == route.policy or other.policy.anonymous
                return None if harmless or other.path.casefold() == route.path.casefold() else other
        return None


def _spellings(path: str) -> set[str]:
    """`path` as it may stand in a reading.

    A server that decodes nothing knows `/café` as `/caf%C3%A9`, and browsers can write it in no other way: the same path.
    """
    escaped = quote(path, safe="/!$&'()*+,:=@~")
    return {path, escaped, _ESCAPE.sub(lambda match: match[0].lower(), escaped)}


class RouteTable:
    """All routes of a gateway, in file order, ready to be matched against."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes = tuple(routes)
        by_path = sorted(self.routes, key=lambda route: (-len(route.path), route.index))
        self._anywhere = [route for route in by_path if route.host is None]
        suffixes = {route.host[1:] for route in self.routes if route.host is not None and route.host.startswith("*.")}
        self._wildcards = [
            (suffix, [route for route in by_path if route.host == "*" + suffix])
            for suffix in sorted(suffixes, key=len, reverse=True)
        ]
        names = {route.host for route in self.routes if route.host is not None and not route.host.startswith("*.")}
        self._exact = {normalise_host(name): [route for route in by_path if route.host == name] for name in names}
        self._hosts: dict[str, _Host] = {}
        self._matches: dict[tuple[str, bytes], Match] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> RouteTable:
        """The table of `settings.route`."""
        everywhere = settings.headers, settings.response
        named = [Route.from_settings(index, route, *everywhere) for index, route in enumerate(settings.route)]
        # After all that have a name of their own: what is said of a path itself counts.
        routes = list(named)
        for around, route in zip(named, settings.route, strict=True):
            for path in opened(route.preset, route.path, route.open):
                inner = Route.from_settings(len(routes), _open_to_everyone(route, path), *everywhere)
                routes.append(
                    replace(inner, around=around, organization=around.organization, header_set=around.header_set)
                )
        return cls(routes)

    def match(self, host: str, raw_path: bytes) -> Match:
        """What takes a request for `raw_path`, the target without its query, on `host`. Total: any bytes get an answer."""
        key = (host, raw_path)
        match = self._matches.get(key)
        if match is None:
            match = self._match(normalise_host(host), raw_path)
            if len(raw_path) + len(host) <= _LONGEST_REMEMBERED:
                if len(self._matches) >= _REMEMBERED:
                    self._matches.clear()
                self._matches[key] = match
        return match

    def knows(self, host: str) -> bool:
        """Whether a route is meant for `host` by name: exactly or by a wildcard."""
        host = normalise_host(host)
        return host in self._exact or any(host.endswith(suffix) for suffix, _ in self._wildcards)

    def _match(self, host: str, raw_path: bytes) -> Match:
        routes = self._host(host)
        if PLAIN.fullmatch(raw_path):
            path = raw_path.decode("ascii")
            plain = routes.route(path)
            other = routes.taken_for(plain, path) if plain is not None else None
            return Match(plain, path, ambiguous=other is not None, other=other)
        found = readings(raw_path)
        route = routes.route(found.canonical)
        if route is None:
            return Match(None, found.canonical)
        others = found.others
        if route.mapping is not None:
            behind = route.mapping.readings(raw_path)
            if behind is None:
                return Match(route, found.canonical, ambiguous=True)
            others += behind
        if routes.uniform:
            return Match(route, found.canonical)
        zone = route.policy.zone(found.canonical)
        for path in (found.canonical, *others):
            other = routes.taken_for(route, path)
            if other is not None:
                return Match(route, found.canonical, ambiguous=True, other=other)
            other = routes.route(path)
            if route.policy.zone(path) != zone:
                return Match(route, found.canonical, ambiguous=True, other=other)
            if other is not route and (other is None or other.policy != route.policy):
                return Match(route, found.canonical, ambiguous=True, other=other)
        return Match(route, found.canonical, ambiguous=not found.complete)

    def _host(self, host: str) -> _Host:
        routes = self._hosts.get(host)
        if routes is None:
            wild = [route for suffix, routes_of in self._wildcards if host.endswith(suffix) for route in routes_of]
            routes = _Host([*self._exact.get(host, ()), *wild, *self._anywhere])
            if len(self._hosts) >= _REMEMBERED:
                self._hosts.clear()
            if len(host) <= _LONGEST_REMEMBERED:
                self._hosts[host] = routes
        return routes


def normalise_host(value: str) -> str:
    """The host in a Host field or an authority: lower case, without port, brackets and one trailing dot.

    Outside ASCII nothing is folded: no route is called so, and `K` (the Kelvin sign) must not become a `k`.
    """
    if value.startswith("["):
        return value[1:].partition("]")[0].lower()
    host = value.partition(":")[0] if value.count(":") == 1 else value
    host = host.removesuffix(".")
    return host.lower() if host.isascii() else host
