"""Sites: which application at Logto signs people in on which host.

Most gateways are one site. Each of `logto.application` makes another, with hosts, public URL, cookie and callback of its own,
under the same Logto. A site is settings as though there were no other; what there is one of for all of them, the prefix, the
routes, the store and the secrets, is the same in each. A session counts on the site whose application it was made for, and on
no other, however it got there: browsers send the cookie of a domain to every host below it, and people can send anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from proxy import cookies
from proxy.routes import normalise_host
from proxy.settings import Settings

# Clients choose hosts: what is remembered of them is bounded, and dropped as a whole.
_REMEMBERED: Final = 4096
_LONGEST_REMEMBERED: Final = 255  # of a name: RFC 1035 2.3.4


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One site, ready for use. `admits` are the applications whose sessions count here: see `Settings.admits`."""

    settings: Settings
    admits: frozenset[str]
    cookie: bytes  # the session cookie's name
    origin: bytes  # of the public URL, in lower case
    own_url: str  # where the gateway's own paths are

    @classmethod
    def from_settings(cls, settings: Settings) -> Site:
        """The site of one application's settings."""
        return cls(
            settings,
            settings.admits,
            cookies.session_name(settings).encode(),
            settings.public_url.lower().encode(),
            settings.public_url + settings.prefix,
        )


class Sites:
    """The sites of a gateway: `main` is that of `logto.app_id`, for every host that none of the `others` has."""

    def __init__(self, settings: Settings) -> None:
        self.main = Site.from_settings(settings)
        self.others = tuple(Site.from_settings(settings.of(one)) for one in settings.logto.application)
        self._exact: dict[str, Site] = {}
        wild: dict[str, Site] = {}
        for one, site in zip(settings.logto.application, self.others, strict=True):
            for host in one.hosts:
                if host.startswith("*."):
                    wild[host[1:]] = site
                else:
                    self._exact[normalise_host(host)] = site
        self._wild = sorted(wild.items(), key=lambda item: -len(item[0]))
        self._known: dict[str, Site] = {}

    def of(self, host: str) -> Site:
        """The site of a host as a request names it, with or without port: exact, then the longest wildcard, then the main one.

        Total: any text gets an answer.
        """
        if not self.others:
            return self.main
        site = self._known.get(host)
        if site is None:
            site = self._of(normalise_host(host))
            if len(host) <= _LONGEST_REMEMBERED:
                if len(self._known) >= _REMEMBERED:
                    self._known.clear()
                self._known[host] = site
        return site

    def _of(self, name: str) -> Site:
        wild = (site for suffix, site in self._wild if name.endswith(suffix))
        return self._exact.get(name) or next(wild, self.main)
