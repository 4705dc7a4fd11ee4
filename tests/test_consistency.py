"""What must hang together across the settings."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from proxy.consistency import contradictions
from proxy.tree import dotted


def tree(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def found(text: str) -> list[str]:
    return [f"{dotted(where)}: {what}; {accepted}" for where, what, accepted in contradictions(tree(text))]


PUBLIC = 'public_url = "https://apps.example.com"\n'
ROUTE = '[[route]]\nname = "{0}"\nupstream = "http://{0}:1"\n'
INSECURE = 'browsers take SameSite=None over https only; "lax" or "strict", or an https public_url'
LOOP = "is where the gateway itself listens; the address of the app"
ALONE = "is more than one, and sessions in memory are known to one process alone; 1, or a session.store in Redis"
PUBLIC_TOO = "is where the gateway itself listens, for everybody; another address"
OUTSIDE = "does not hold the host of public_url, apps.example.com; that host or a domain it is in"
REACH = "the session cookie of {} does not get there; a host below session.cookie.domain, or apps.example.com"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (PUBLIC, []),
        # where the cookie goes
        (PUBLIC + 'session.cookie.domain = "example.com"', []),
        (PUBLIC + 'session.cookie.domain = "apps.example.com"', []),
        (PUBLIC + 'session.cookie.domain = ".example.com"', []),
        (
            PUBLIC + 'session.cookie.domain = "s.example.com"',
            ["session.cookie.domain: " + OUTSIDE],
        ),
        (
            PUBLIC + 'session.cookie.domain = "ps.example.com"',
            ["session.cookie.domain: " + OUTSIDE],
        ),
        (
            PUBLIC + 'session.cookie.domain = "com"',
            ["session.cookie.domain: is no domain that browsers accept for a cookie; a domain of two labels or more"],
        ),
        (
            'public_url = "http://127.0.0.1:3000"\nsession.cookie.domain = "127.0.0.1"',
            ["session.cookie.domain: is no domain that browsers accept for a cookie; a domain of two labels or more"],
        ),
        (PUBLIC + 'session.cookie.same_site = "none"', []),
        (
            'public_url = "http://localhost:3000"\nsession.cookie.same_site = "none"',
            ["session.cookie.same_site: " + INSECURE],
        ),
        # what several processes can share
        ("workers = 1", []),
        ('workers = 2\nsession.store = "redis://r:6379/0"', []),
        ('workers = "many"', []),
        ("workers = 2", ["workers: " + ALONE]),
        ('workers = "2"\nsession.store = "memory://"', ["workers: " + ALONE]),
        # what is not for everybody
        ('listen = "127.0.0.1:0"\nmetrics.listen = "127.0.0.1:0"', []),
        ('listen = "0.0.0.0:3000"\nmetrics.listen = "127.0.0.1:9464"', []),
        ('listen = "unix:/a"\nmetrics.listen = "unix:/a"', ["metrics.listen: " + PUBLIC_TOO]),
        ('metrics.listen = "127.0.0.1:3000"', ["metrics.listen: " + PUBLIC_TOO]),
        # who can be reached by it
        (PUBLIC + ROUTE.format("a") + 'host = "apps.example.com"', []),
        (PUBLIC + ROUTE.format("a"), []),
        (PUBLIC + ROUTE.format("a") + 'host = "wiki.example.com"', ["route[0].host: " + REACH.format("apps.example.com")]),
        (PUBLIC + ROUTE.format("a") + 'host = "*.apps.example.com"', ["route[0].host: " + REACH.format("apps.example.com")]),
        (PUBLIC + ROUTE.format("a") + 'host = "wiki.example.com"\nallow = "everyone"', []),
        (
            PUBLIC + ROUTE.format("a") + 'host = "w.example.com"\nallow = "everyone"\ndeny = [{ users = ["x"] }]',
            ["route[0].host: " + REACH.format("apps.example.com")],
        ),
        (PUBLIC + 'session.cookie.domain = "example.com"\n' + ROUTE.format("a") + 'host = "wiki.example.com"', []),
        (PUBLIC + 'session.cookie.domain = "example.com"\n' + ROUTE.format("a") + 'host = "*.example.com"', []),
        (
            PUBLIC + 'session.cookie.domain = "example.com"\n' + ROUTE.format("a") + 'host = "*.com"',
            ["route[0].host: " + REACH.format("example.com")],
        ),
        (
            PUBLIC + 'session.cookie.domain = "example.com"\n' + ROUTE.format("a") + 'host = "wiki.example.org"',
            ["route[0].host: " + REACH.format("example.com")],
        ),
        # twice the same
        (
            PUBLIC + ROUTE.format("a") + ROUTE.format("a") + 'path = "/x"',
            ["route[1].name: route[0] has this name; a name of its own"],
        ),
        (
            PUBLIC + ROUTE.format("a") + 'path = "/x"\n' + ROUTE.format("b") + 'path = "/%78/"',
            ["route[1].path: route[0] takes every request for this host and path; another host or path"],
        ),
        (PUBLIC + ROUTE.format("a") + ROUTE.format("b") + 'host = "apps.example.com"', []),
        # below our own paths
        (
            PUBLIC + ROUTE.format("a") + 'path = "/.postern/x"',
            ["route[0].path: lies below prefix, where the gateway answers itself; another path"],
        ),
        (PUBLIC + ROUTE.format("a") + 'path = "/.posternx"', []),
        (
            'prefix = "/gate"\n' + PUBLIC + ROUTE.format("a") + 'path = "/gate"',
            ["route[0].path: lies below prefix, where the gateway answers itself; another path"],
        ),
        # round in circles
        (PUBLIC + '[[route]]\nupstream = "http://127.0.0.1:3000"', ["route[0].upstream: " + LOOP]),
        (PUBLIC + '[[route]]\nupstream = ["http://a:1", "http://localhost:3000"]', ["route[0].upstream[1]: " + LOOP]),
        (PUBLIC + 'listen = "0.0.0.0:80"\n[[route]]\nupstream = "http://[::1]"', ["route[0].upstream: " + LOOP]),
        (PUBLIC + 'listen = "10.0.0.1:443"\n[[route]]\nupstream = "https://10.0.0.1"', ["route[0].upstream: " + LOOP]),
        (PUBLIC + 'listen = "unix:/p.sock"\n[[route]]\nupstream = "unix:/p.sock"', ["route[0].upstream: " + LOOP]),
        (PUBLIC + 'listen = "unix:/p.sock"\n[[route]]\nupstream = "http://127.0.0.1:3000"', []),
        (PUBLIC + '[[route]]\nupstream = "unix:/app.sock"', []),
        (PUBLIC + '[[route]]\nupstream = "http://127.0.0.1:3001"', []),
        (PUBLIC + '[[route]]\nupstream = "http://app:3000"', []),
        (PUBLIC + 'listen = "10.0.0.1:3000"\n[[route]]\nupstream = "http://127.0.0.1:3000"', []),
    ],
)  # fmt: skip
def test_contradictions(text: str, expected: list[str]) -> None:
    assert found(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        'public_url = 5\nsession.cookie.domain = "example.org"',
        PUBLIC + 'session = 5\n[[route]]\nhost = "a.b:x"\nname = 5\npath = 5\nupstream = 5',
        PUBLIC + 'route = ["a", 5]',
        PUBLIC + 'route = "a"',
        PUBLIC + 'prefix = "x"\nlisten = 5\n[[route]]\nupstream = [5, "x"]',
        PUBLIC + '[[route]]\nhost = "?"\n[[route]]\nhost = "?"',
    ],
)
def test_what_cannot_be_read_contradicts_nothing(text: str) -> None:
    assert found(text) == []


def applications(*tables: str, public: str = PUBLIC, more: str = "") -> str:
    """Settings with further applications, whose ids are `one`, `two`, … unless they say otherwise."""
    names = ("one", "two", "three")
    headed = [
        f"[[logto.application]]\n{table}\n" + ("" if "app_id" in table else f'app_id = "{name}"\n')
        for name, table in zip(names, tables, strict=False)
    ]
    return public + '[logto]\napp_id = "main"\n' + "".join(headed) + more


ITS_DOMAIN = "logto.application[0].cookie_domain: "
TAKEN = (
    "logto.application[0].hosts: takes apps.example.com, the host of public_url; "
    "hosts that sign-ins of logto.app_id do not come back to"
)
FAR = "logto.application[{}].hosts[{}]: the session cookie of {} does not get there; a host below its cookie_domain, or {}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (applications('hosts = ["a.example.com"]'), []),
        (applications('hosts = ["A.Example.com"]\npublic_url = "https://a.example.com"'), []),
        (applications('hosts = ["a.example.org", "b.example.org"]\ncookie_domain = ".example.org"'), []),
        (
            applications('hosts = ["*.b.test"]\npublic_url = "https://x.b.test:8443"\ncookie_domain = "b.test"'),
            [],
        ),
        # the cookie has to get everywhere
        (
            applications('hosts = ["a.example.org", "b.example.org"]'),
            [FAR.format(0, 1, "a.example.org", "a.example.org")],
        ),
        (
            applications('hosts = ["a.test", "*.a.test"]\ncookie_domain = "x.a.test"'),
            [
                ITS_DOMAIN + "does not hold the host of public_url, a.test; that host or a domain it is in",
                FAR.format(0, 0, "x.a.test", "a.test"),
                FAR.format(0, 1, "x.a.test", "a.test"),
            ],
        ),
        (
            applications('hosts = ["a.test"]\ncookie_domain = "test"'),
            [
                ITS_DOMAIN + "is no domain that browsers accept for a cookie; a domain of two labels or more",
            ],
        ),
        # a public URL of one of its own hosts, over the same scheme
        (
            applications('hosts = ["*.b.test"]\ncookie_domain = "b.test"'),
            ["logto.application[0].public_url: is missing, and no one of hosts is exact; a URL of one of its hosts"],
        ),
        (
            applications('hosts = ["a.test"]\npublic_url = "https://b.test"'),
            [
                "logto.application[0].public_url: its host, b.test, is none of hosts; a URL of one of its hosts",
                FAR.format(0, 0, "b.test", "b.test"),
            ],
        ),
        (
            applications('hosts = ["a.test"]\npublic_url = "http://a.test"'),
            ["logto.application[0].public_url: is not https, as the public_url of the gateway is; the same scheme"],
        ),
        # whose host is whose
        (
            applications('hosts = ["a.test"]', 'hosts = ["a.test"]'),
            ["logto.application[1].hosts[0]: logto.application[0] has this host; hosts that no other application has"],
        ),
        (
            applications('hosts = ["apps.example.com"]'),
            [
                TAKEN,
            ],
        ),
        (
            applications('hosts = ["example.com", "*.example.com"]\ncookie_domain = "example.com"'),
            [
                TAKEN,
            ],
        ),
        # an id of its own
        (
            applications('hosts = ["a.test"]\napp_id = "main"'),
            ["logto.application[0].app_id: logto.app_id is the same; an application of its own"],
        ),
        (
            applications('hosts = ["a.test"]', 'hosts = ["b.test"]\napp_id = "one"'),
            ["logto.application[1].app_id: logto.application[0].app_id is the same; an application of its own"],
        ),
        # routes on its hosts are within reach of its cookie, those elsewhere have to be within that of the gateway's
        (applications('hosts = ["a.test"]', more=ROUTE.format("r") + 'host = "a.test"\n'), []),
        (
            applications('hosts = ["a.test"]', more=ROUTE.format("r") + 'host = "b.test"\n'),
            ["route[0].host: " + REACH.format("apps.example.com")],
        ),
        (
            applications(
                'hosts = ["b.test", "*.b.test"]\ncookie_domain = "b.test"',
                'hosts = ["c.b.test"]',
                more=ROUTE.format("r") + 'host = "*.c.b.test"\n',
            ),
            [],
        ),
        # what cannot be read takes part in nothing
        (applications("hosts = 7"), []),
        (applications('hosts = ["a b"]\npublic_url = "x"\ncookie_domain = 7'), []),
        (applications('hosts = ["a.test"]\ncookie_domain = 7\napp_id = 7'), []),
        (PUBLIC + "logto.application = 7", []),
        (PUBLIC + "logto.application = [7]", []),
        (applications('hosts = ["a.test"]', public=""), []),
    ],
)
def test_applications_by_host(text: str, expected: list[str]) -> None:
    assert found(text) == expected
