"""Which site a host belongs to, and what a site makes of the settings."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy import cookies
from proxy.settings import Settings, load
from proxy.sites import Sites

TWO = """
public_url = "https://apps.example.com:8443"
[logto]
endpoint = "https://auth.example.com"
app_id = "main"
app_secret = "secret-of-main"
[[logto.application]]
hosts = ["a.example.com", "A2.example.com"]
cookie_domain = "example.com"
app_id = "one"
app_secret = "secret-of-one"
[[logto.application]]
hosts = ["*.b.example.com", "*.deep.a.example.com", "b.example.com", "[::1]"]
public_url = "https://b.example.com"
cookie_domain = ".b.example.com"
app_id = "two"
app_secret = "secret-of-two"
[session.cookie]
domain = "apps.example.com"
[[route]]
name = "any"
upstream = "http://127.0.0.1:9"
"""


def settings(folder: Path, text: str = TWO) -> Settings:
    file = folder / "postern.toml"
    file.write_text(text, "utf-8")
    return load(file, {})


def _odd() -> Sites:
    """Sites with hosts out of reach of their cookie, which `load` would not have: `Sites` does not depend on that."""
    text = TWO.replace(', "*.deep.a.example.com"', "").replace(', "[::1]"', "")
    with tempfile.TemporaryDirectory() as folder:
        whole = settings(Path(folder), text)
    one, two = whole.logto.application
    more = two.model_copy(update={"hosts": (*two.hosts, "*.deep.a.example.com", "[::1]")})
    return Sites(whole.model_copy(update={"logto": whole.logto.model_copy(update={"application": (one, more)})}))


SITES = _odd()


@pytest.mark.parametrize(
    ("host", "application"),
    [
        ("apps.example.com", "main"),
        ("apps.example.com:8443", "main"),
        ("a.example.com", "one"),
        ("A.Example.Com:443", "one"),
        ("a.example.com.", "one"),
        ("a2.example.com", "one"),
        ("x.a.example.com", "main"),  # an exact host is that host alone
        ("ba.example.com", "main"),
        ("b.example.com", "two"),
        ("x.b.example.com", "two"),
        ("x.y.b.example.com:1", "two"),
        ("xb.example.com", "main"),
        (".b.example.com", "two"),
        ("x.deep.a.example.com", "two"),
        ("[::1]:3000", "two"),
        ("[::1]", "two"),
        ("::1", "two"),
        ("", "main"),
        ("evil.example\r\na.example.com", "main"),
        ("a.example.com@evil.example", "main"),
        ("a.example.com/", "main"),
        ("a.example.com\x00", "main"),
        ("\u212a.example.com", "main"),
        ("x" * 5000 + ".b.example.com", "two"),
    ],
)
def test_the_site_of_a_host(host: str, application: str) -> None:
    assert SITES.of(host).settings.logto.app_id == application
    assert SITES.of(host) is SITES.of(host), "asked again"


@given(st.text(max_size=40) | st.sampled_from(["a", "b", "x.b", "apps"]).map("{}.example.com".format))
def test_only_names_of_its_own_lead_to_another_site(host: str) -> None:
    site = SITES.of(host)
    assert site is SITES.main or host.partition(":")[0].rstrip(".").lower().endswith((".example.com", "::1"))


def test_what_clients_choose_takes_up_only_so_much_room() -> None:
    for number in range(10_000):
        SITES.of(f"x{number}.b.example.com")
    assert len(SITES._known) <= 4096


def test_a_site_is_settings_as_though_there_were_no_other() -> None:
    one, two = SITES.others
    assert [site.settings.public_url for site in (SITES.main, one, two)] == [
        "https://apps.example.com:8443",
        "https://a.example.com:8443",  # reached as the gateway is
        "https://b.example.com",
    ]
    assert (one.own_url, one.origin) == ("https://a.example.com:8443/.postern", b"https://a.example.com:8443")
    assert [site.settings.logto.app_secret.get_secret_value() for site in (one, two)] == [
        "secret-of-one",
        "secret-of-two",
    ]
    assert [site.settings.session.cookie.domain for site in (one, two)] == ["example.com", "b.example.com"]
    assert one.settings.logto.application == ()
    assert (one.settings.route, one.settings.prefix) == (SITES.main.settings.route, SITES.main.settings.prefix)
    assert one.cookie == cookies.session_name(one.settings).encode() == b"postern"


def test_what_seals_sessions_and_signs_assertions_is_the_gateways_whatever_the_site() -> None:
    assert {site.settings.seal_secrets for site in (SITES.main, *SITES.others)} == {SITES.main.settings.seal_secrets}


def test_a_session_counts_where_it_was_made_and_one_from_before_on_the_main_site() -> None:
    assert [sorted(site.admits) for site in (SITES.main, *SITES.others)] == [["", "main"], ["one"], ["two"]]
    assert SITES.main.settings.app_ids == {"main", "one", "two"}
    assert [site.settings.alone for site in (SITES.main, *SITES.others)] == [False, False, False]


def test_one_application_is_one_site_for_every_host(tmp_path: Path) -> None:
    plain = settings(tmp_path, TWO[: TWO.index("[[logto")] + TWO[TWO.index("[session") :])
    alone = Sites(plain)
    assert alone.of("anything.test") is alone.of("") is alone.main
    assert alone.main.settings is plain
    assert plain.alone


def test_the_first_exact_host_gives_the_public_url(tmp_path: Path) -> None:
    wild = '[[logto.application]]\nhosts = ["*.c.test", "c.test"]\napp_id = "c"\napp_secret = "c"\ncookie_domain = "c.test"\n'
    text = TWO[: TWO.index("[[logto")] + wild + TWO[TWO.index("[session") :]
    whole = settings(tmp_path, text)
    assert Sites(whole).others[0].settings.public_url == "https://c.test:8443"
