"""What has to hang together across the settings: each key right on its own, the whole still wrong.

Reads the tree leniently, key by key, so that these checks can be made while other keys are broken: nobody should mend a typo
only to learn of a contradiction. A key that cannot be read takes part in no check; its own problem is reported elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

from proxy.addresses import LISTEN, PUBLIC_URL, ROUTE_HOST, UPSTREAM, Listen, Url, default_url, parse_url
from proxy.notation import PATH, PREFIX, is_loopback
from proxy.sections import CookieSettings
from proxy.tree import Path, dotted, value_at

T = TypeVar("T")

_EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})


class Contradiction(NamedTuple):
    """What is wrong at `path`, seen against the rest."""

    path: Path
    what: str
    accepted: str


@dataclass(frozen=True, slots=True)
class _Application:
    """What could be read of one of `logto.application`; `url` and `domain` are None when they could not be."""

    where: Path
    hosts: Mapping[int, str]
    url: Url | None
    domain: str | None
    app_id: Any


@dataclass(frozen=True, slots=True)
class _Route:
    """What could be read of one route. `host` is None for any host, `unread` when it could not be read."""

    index: int
    name: str | None
    host: str | None
    unread: bool
    path: str | None
    upstream: tuple[str | None, ...]
    anonymous: bool

    @property
    def where(self) -> Path:
        return ("route", self.index)


def contradictions(tree: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Everything in `tree` that contradicts something else in it."""
    public = _sound(lambda value: parse_url(PUBLIC_URL.read(value)), tree.get("public_url"))
    cookie = _sound(CookieSettings.model_validate, value_at(("session", "cookie"), tree) or {})
    listen = _sound(LISTEN.read, tree.get("listen", "127.0.0.1:3000"))
    prefix = _sound(PREFIX.read, tree.get("prefix", "/.postern"))
    routes = tree.get("route")
    read = [
        _route(index, raw)
        for index, raw in enumerate(routes if isinstance(routes, list) else [])
        if isinstance(raw, dict)
    ]
    applications = list(_applications(tree, public))
    if public is not None and cookie is not None:
        yield from _cookie(public, cookie)
        elsewhere = [route for route in read if route.host is None or _taken_by(route.host, applications) is None]
        yield from _out_of_reach(public, cookie, elsewhere)
    if public is not None:
        for application in applications:
            yield from _application(application, public)
    yield from _applications_doubled(tree, public, applications)
    yield from _doubled(read)
    yield from _guilds_unknown(tree, read)
    if _many(tree.get("workers")) and _in_memory(value_at(("session", "store"), tree)):
        what = "is more than one, and sessions in memory are known to one process alone"
        yield Contradiction(("workers",), what, "1, or a session.store in Redis")
    metrics = _sound(LISTEN.read, value_at(("metrics", "listen"), tree))
    if metrics is not None and metrics == listen and metrics.port != 0:
        what = "is where the gateway itself listens, for everybody"
        yield Contradiction(("metrics", "listen"), what, "another address")
    for route in read:
        if prefix is not None and route.path is not None and f"{route.path}/".startswith(f"{prefix}/"):
            yield Contradiction(
                (*route.where, "path"), "lies below prefix, where the gateway answers itself", "another path"
            )
        for number, upstream in enumerate(route.upstream):
            if upstream is not None and listen is not None and _same_place(upstream, listen):
                where: Path = (*route.where, "upstream")
                where = (*where, number) if isinstance(value_at(where, tree), list) else where
                yield Contradiction(where, "is where the gateway itself listens", "the address of the app")


def _cookie(public: Url, cookie: CookieSettings) -> Iterator[Contradiction]:
    yield from _cookie_domain(("session", "cookie", "domain"), public, cookie.domain)
    if cookie.same_site == "none" and public.scheme != "https":
        where = ("session", "cookie", "same_site")
        yield Contradiction(
            where, "browsers take SameSite=None over https only", '"lax" or "strict", or an https public_url'
        )


def _cookie_domain(where: Path, public: Url, domain: str) -> Iterator[Contradiction]:
    """RFC 6265 5.3: browsers drop a cookie for a domain that the host setting it is not in."""
    if domain and not _below(public.host, domain):
        yield Contradiction(
            where, f"does not hold the host of public_url, {public.host}", "that host or a domain it is in"
        )
    elif domain and ("." not in domain or _is_address(domain)):
        yield Contradiction(where, "is no domain that browsers accept for a cookie", "a domain of two labels or more")


def _applications(tree: Mapping[str, Any], public: Url | None) -> Iterator[_Application]:
    given = value_at(("logto", "application"), tree)
    for index, raw in enumerate(given if isinstance(given, list) else []):
        if not isinstance(raw, dict):
            continue
        hosts = raw.get("hosts")
        read = enumerate([_sound(ROUTE_HOST.read, host) for host in hosts] if isinstance(hosts, list) else [])
        sound = {number: host for number, host in read if host is not None}
        url = raw.get("public_url") or (default_url(public, list(sound.values())) if public is not None else None)
        yield _Application(
            where=("logto", "application", index),
            hosts=sound,
            url=_sound(lambda value: parse_url(PUBLIC_URL.read(value)), url),
            domain=_sound(lambda value: CookieSettings(domain=value).domain, raw.get("cookie_domain", "")),
            app_id=raw.get("app_id"),
        )


def _application(it: _Application, public: Url) -> Iterator[Contradiction]:
    """Each is reached as the gateway itself is; and its cookie, which its public URL sets, reaches every host of its own."""
    where: Path = (*it.where, "public_url")
    if it.url is None:
        if it.hosts and all(host.startswith("*.") for host in it.hosts.values()):
            yield Contradiction(where, "is missing, and no one of hosts is exact", "a URL of one of its hosts")
        return
    if it.url.scheme != public.scheme:
        yield Contradiction(where, f"is not {public.scheme}, as the public_url of the gateway is", "the same scheme")
    if it.hosts and _taken_by(it.url.host, [it]) is None:
        yield Contradiction(where, f"its host, {it.url.host}, is none of hosts", "a URL of one of its hosts")
    if it.domain is None:
        return
    yield from _cookie_domain((*it.where, "cookie_domain"), it.url, it.domain)
    for number, host in it.hosts.items():
        name = host.removeprefix("*.")
        if not (_below(name, it.domain) if it.domain else host == it.url.host):
            accepted = f"a host below its cookie_domain, or {it.url.host}"
            what = f"the session cookie of {it.domain or it.url.host} does not get there"
            yield Contradiction((*it.where, "hosts", number), what, accepted)


def _applications_doubled(
    tree: Mapping[str, Any], public: Url | None, applications: list[_Application]
) -> Iterator[Contradiction]:
    """A host belongs to one application, and the public URL's to none of the further ones; each has an id of its own."""
    hosts: dict[str, Path] = {}
    ids: dict[Any, str] = {value_at(("logto", "app_id"), tree): "logto.app_id"}
    for it in applications:
        for number, host in it.hosts.items():
            first = hosts.setdefault(host, it.where)
            if first != it.where:
                what = f"{dotted(first)} has this host"
                yield Contradiction((*it.where, "hosts", number), what, "hosts that no other application has")
        own = f"{dotted(it.where)}.app_id"
        if isinstance(it.app_id, str) and (known := ids.setdefault(it.app_id, own)) != own:
            yield Contradiction((*it.where, "app_id"), f"{known} is the same", "an application of its own")
    taken = _taken_by(public.host, applications) if public is not None else None
    if public is not None and taken is not None:
        what = f"takes {public.host}, the host of public_url"
        yield Contradiction((*taken.where, "hosts"), what, "hosts that sign-ins of logto.app_id do not come back to")


def _taken_by(host: str, applications: list[_Application]) -> _Application | None:
    """Whose people come to `host`: see `sites.Sites.of`. None: those of `logto.app_id`."""
    found: tuple[int, _Application] | None = None
    for it in applications:
        for own in it.hosts.values():
            if own == host:
                return it
            if own.startswith("*.") and host.endswith(own[1:]) and (found is None or len(own) > found[0]):
                found = (len(own), it)
    return found[1] if found is not None else None


def _out_of_reach(public: Url, cookie: CookieSettings, routes: list[_Route]) -> Iterator[Contradiction]:
    """Routes on hosts that never see the session cookie would send people to sign in for ever."""
    reach = cookie.domain or public.host
    for route in routes:
        if route.host is None or route.unread or route.anonymous:
            continue
        host = route.host.removeprefix("*.")
        reached = _below(host, cookie.domain) if cookie.domain else route.host == public.host
        if not reached:
            accepted = f"a host below session.cookie.domain, or {public.host}"
            yield Contradiction((*route.where, "host"), f"the session cookie of {reach} does not get there", accepted)


def _doubled(routes: list[_Route]) -> Iterator[Contradiction]:
    names: dict[str, int] = {}
    places: dict[tuple[str | None, str], int] = {}
    for route in routes:
        if route.name is not None:
            first = names.setdefault(route.name, route.index)
            if first != route.index:
                yield Contradiction((*route.where, "name"), f"route[{first}] has this name", "a name of its own")
        if route.path is not None and not route.unread:
            first = places.setdefault((route.host, route.path), route.index)
            if first != route.index:
                what = f"route[{first}] takes every request for this host and path"
                yield Contradiction((*route.where, "path"), what, "another host or path")


def _guilds_unknown(tree: Mapping[str, Any], routes: list[_Route]) -> Iterator[Contradiction]:
    """A guild that nobody can be asked about has no members, and whom a rule means to keep out of it would come in."""
    if tree.get("discord"):
        return
    for route in routes:
        for kind in ("allow", "deny"):
            rules = value_at((*route.where, kind), tree)
            for number in range(len(rules) if isinstance(rules, list) else 0):
                where: Path = (*route.where, kind, number, "discord", "guild")
                if value_at(where, tree) is not None:
                    yield Contradiction(where, "cannot be asked about", "discord.bot_token as well, or no guild")


def _route(index: int, raw: Mapping[str, Any]) -> _Route:
    given = raw.get("host") or None
    host = None if given is None else _sound(ROUTE_HOST.read, given)
    upstream = raw.get("upstream")
    name = raw.get("name")
    return _Route(
        index=index,
        name=name if isinstance(name, str) else None,
        host=host,
        unread=given is not None and host is None,
        path=_sound(PATH.read, raw.get("path", "/")),
        upstream=tuple(
            _sound(UPSTREAM.read, item) for item in (upstream if isinstance(upstream, list) else [upstream])
        ),
        anonymous=raw.get("allow") == "everyone" and not raw.get("deny"),
    )


def _many(workers: Any) -> bool:
    return str(workers).isdecimal() and int(workers) > 1


def _in_memory(store: Any) -> bool:
    return store in (None, "memory://")


def _sound(read: Callable[[Any], T], value: Any) -> T | None:
    try:
        return read(value)
    except ValueError:  # pydantic's is one too
        return None


def _below(host: str, domain: str) -> bool:
    return host == domain or host.endswith("." + domain)


def _is_address(host: str) -> bool:
    return host.replace(".", "").isdecimal()


def _same_place(upstream: str, listen: Listen) -> bool:
    """Whether `upstream` is certainly this gateway: requests would go round until something breaks."""
    if upstream.startswith("unix:"):
        return listen.path == upstream.removeprefix("unix:")
    url = parse_url(upstream)
    port = url.port or (443 if url.scheme == "https" else 80)
    if listen.host is None or port != listen.port:
        return False
    host = url.host.strip("[]")
    return host == listen.host or (is_loopback(host) and (listen.host in _EVERY_ADDRESS or is_loopback(listen.host)))
