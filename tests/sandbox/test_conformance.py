"""The stand-in against recordings of a real Logto: the same requests, the same answers but for what is fresh each time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import jwt
import pytest

from tests.sandbox.conftest import Receiver
from tests.sandbox.shapes import address, answer, cookies, shape
from tests.sandbox.stand import (
    CALLBACK,
    CLIENT_ID,
    EVERYTHING,
    HOST,
    ORGANIZATION,
    RESOURCE,
    SIGNED_OUT,
    Browser,
    Stand,
    forms,
    recording,
)

ALICE, CAROL, DAVE = "s0062qn56eia", "vr1zanaw32xo", "x7fgn7si6qtr"


def named(entries: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(entry, id=entry["name"]) for entry in entries]


# -- the authorization endpoint ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", named(recording("authorize")))
def test_the_authorization_endpoint_answers_as_recorded(recorded: Stand, entry: dict[str, Any]) -> None:
    with recorded.browser() as browser:
        if entry["signed_in"]:
            browser.sign_in(DAVE)
        fresh, _ = browser.query()
        query = {name: fresh[name] if value == f"${name}" else value for name, value in entry["query"].items()}
        got = answer(browser.get("/oidc/auth", params=query))
    assert got == entry["answer"]


@pytest.mark.parametrize("entry", named(recording("extras")))
def test_extra_parameters_choose_the_page_as_recorded(recorded: Stand, entry: dict[str, Any]) -> None:
    with recorded.browser() as browser:
        location = browser.authorize(**entry["extra"]).headers["location"]
    assert address(f"http://{HOST}{location}") == entry["page"]


@pytest.mark.parametrize("entry", named(recording("pages")))
def test_pages_without_cookies_answer_as_recorded(recorded: Stand, entry: dict[str, Any]) -> None:
    with recorded.browser() as browser:
        path = entry["path"].replace("<connector>", "sandboxdiscd")
        content = b'{"interactionEvent":"SignIn"}' if entry["method"] == "PUT" else None
        got = answer(browser.client.request(entry["method"], path, content=content))
    assert got == entry["answer"]


# -- the way through --------------------------------------------------------------------------------------------------


def drive(browser: Browser, entry: Mapping[str, Any], url: str, values: dict[str, str]) -> httpx2.Response:
    """One recorded step of the real sign-in page: its body with this run's values in it."""
    body = entry.get("request")
    content = None
    if body is not None:
        text = json.dumps(body).replace("<verification>", values.get("verificationId", ""))
        content = text.replace('"<state>"', '"s1"').encode()
        if "connectorData" in body:
            content = json.dumps(
                {"verificationId": values["verificationId"], "connectorData": {"code": values["discord"]}}
            ).encode()
    return browser.client.request(entry["method"], url, content=content, headers={"logto-app-id": CLIENT_ID})


def test_a_first_sign_in_goes_hop_by_hop_as_recorded(recorded: Stand) -> None:
    chain = recording("sign-in")
    with recorded.browser() as browser:
        query, verifier = browser.query()
        url, values = str(httpx2.URL("/oidc/auth", params=query)), dict[str, str]()
        for entry in chain["hops"]:
            if entry["path"].startswith("/api/experience") or entry["path"].startswith("/callback"):
                url = entry["path"].replace("<connector>", "sandboxdiscd")
            assert shape(urlsplit(url).path) == entry["path"]
            got = drive(browser, entry, url, values)
            expected = {name: entry[name] for name in ("status", "location", "content_type", "cache_control", "body")}
            seen = answer(got)
            # The real verification also clears a cookie of Google's One Tap, which the stand-in never sets.
            assert [name for name in entry["cookies"] if "google" not in name] == seen.pop("cookies")
            if expected["body"] and "authorizationUri" in expected["body"]:
                values |= got.json()
                discord = browser.get(values["authorizationUri"] + f"&person={DAVE}")
                assert discord.status_code == 302
                values["discord"] = parse_qs(urlsplit(discord.headers["location"]).query)["code"][0]
                assert expected["body"].keys() == seen["body"].keys()
            else:
                assert seen == expected
            url = got.headers.get("location") or (got.json() if got.content and seen["body"] else {}).get(
                "redirectTo", ""
            )
            url = url.removeprefix(f"http://{HOST}")
        callback = {name: found[0] for name, found in parse_qs(urlsplit(url).query).items()}
        browser.verifiers[callback["code"]] = verifier
        tokens = browser.token(browser.code_form(callback["code"]))
    assert tokens.status_code == chain["token"]["status"]
    assert shape(tokens.json()) == chain["token"]["body"]


def test_the_pages_lead_the_same_way_without_a_script(recorded: Stand) -> None:
    with recorded.browser() as browser:
        first = browser.authorize()
        assert browser.get(first.headers["location"]).status_code == 200
        hop, statuses = browser.get("/sandbox/discord/authorize", params={"person": ALICE}), list[int]()
        while not hop.headers["location"].startswith(CALLBACK):
            hop = browser.get(hop.headers["location"])
            statuses.append(hop.status_code)
    assert statuses == [303, 303, 302, 303]


def test_somebody_else_signs_in_over_a_living_session_as_recorded(recorded: Stand, receiver: Receiver) -> None:
    entries = recording("edges")["switch-person"]
    with recorded.browser() as browser:
        browser.sign_in(ALICE)
        got = browser.authorize(prompt="login consent")
        seen = [got]
        got = browser.get(browser.get("/sandbox/discord/authorize", params={"person": CAROL}).headers["location"])
        for entry in entries[1:]:
            url = got.headers.get("location")
            if entry["method"] == "POST":
                form = forms(got.text) or {}
                got = browser.post(form["action"], form["fields"] | {"logout": "yes"})
            else:
                got = browser.get(url or "")
            seen.append(got)
    assert [answer(response) for response in seen] == [
        {name: entry[name] for name in ("status", "location", "cookies", "content_type", "cache_control", "body")}
        for entry in entries
    ]
    assert len(receiver.forms) == 1


def test_of_two_tabs_the_one_that_started_last_gets_the_answer_and_the_other_is_lost(recorded: Stand) -> None:
    with recorded.browser() as browser:
        browser.authorize(state="of-tab-a")
        browser.authorize(state="of-tab-b")
        callback = browser.walk(browser.get("/sandbox/discord/authorize", params={"person": ALICE}), ALICE)
        late = browser.client.put("/api/experience", json={"interactionEvent": "SignIn"})
        page = browser.get(browser.get("/sandbox/discord/authorize", params={"person": ALICE}).headers["location"])
    assert callback["state"] == "of-tab-b"
    (entry,) = recording("edges")["second-tab"]
    assert answer(late) == {
        name: entry[name] for name in ("status", "location", "cookies", "content_type", "cache_control", "body")
    }
    assert page.status_code == 200
    assert "Session not found" in page.text


def test_access_control_refuses_as_recorded(recorded: Stand) -> None:
    entries = recording("edges")["access-control"]
    with recorded.browser() as browser, recorded.browser() as other:
        tokens = browser.tokens(ALICE)
        recorded.state.config = dataclasses.replace(recorded.state.config, access_control_roles=("ops",))
        denied = browser.refresh(tokens["refresh_token"])
        assert (denied.status_code, denied.json()) == tuple(entries["acl-refresh-denied"].values())
        assert answer(browser.authorize(prompt=None)) == entries["acl-sso-existing-grant"]
        assert answer(browser.authorize(prompt="none")) == entries["acl-prompt-none"]
        other.authorize()
        page = other.get("/sandbox/discord/authorize", params={"person": ALICE})
        while "location" in page.headers:
            page = other.get(page.headers["location"])
        assert answer(page) == entries["acl-first-time-consent"]
        recorded.state.config = dataclasses.replace(recorded.state.config, access_control_roles=())
        again = browser.refresh(tokens["refresh_token"])
        assert again.status_code == entries["acl-refresh-after-reenable"]["status"]


# -- the token endpoint -----------------------------------------------------------------------------------------------


class Conversation:
    """Replays exchanges with the token endpoint in order: fills in codes, verifiers and tokens by their labels."""

    def __init__(self, stand: Stand, browser: Browser, prepare: Callable[[str], dict[str, Any]]) -> None:
        self.stand, self.browser, self.prepare = stand, browser, prepare
        stand.state.clock.stop()  # a slow machine must not make a replay late
        self.codes: dict[str, str] = {}
        self.refresh: dict[str, str] = {}

    def replay(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            form = {name: self.value(value) for name, value in entry["form"].items()}
            self.stand.state.clock.offset += entry.get("advance", 0)
            got = self.browser.token(form, entry["auth"])
            assert (entry["name"], got.status_code) == (entry["name"], entry["status"]), got.text
            headers = {name: got.headers.get(name) for name in entry["headers"]}
            assert headers == entry["headers"], entry["name"]
            assert shape(got.json()) == entry["body"], entry["name"]
            if "keeps" in entry:
                self.refresh[entry["keeps"]] = got.json()["refresh_token"]

    def value(self, value: str) -> str:
        if not value.startswith("$"):
            return value
        kind, _, label = value.partition(":")
        if kind == "$code":
            return self.code(label)
        if kind == "$verifier":
            return self.browser.verifiers[self.code(label)]
        if label not in self.refresh:
            self.refresh[label] = self.browser.exchange({"code": self.code(label)})["refresh_token"]
        return self.refresh[label]

    def code(self, label: str) -> str:
        if label not in self.codes:
            changes = self.prepare(label)
            self.codes[label] = self.browser.sign_in(changes.pop("who", ALICE), **changes)["code"]
        return self.codes[label]


def test_codes_are_exchanged_and_refused_as_recorded(recorded: Stand) -> None:
    def prepare(label: str) -> dict[str, Any]:
        without = {"code_challenge": None, "code_challenge_method": None}
        return without if label.startswith("no-pkce") else {}

    entries = recording("token")
    assert len(entries) > 20
    with recorded.browser() as browser:
        Conversation(recorded, browser, prepare).replay(entries)


def test_refresh_tokens_are_rotated_and_refused_as_recorded(recorded: Stand) -> None:
    def prepare(label: str) -> dict[str, Any]:
        # Access tokens of this conversation outlive the clock's jumps; each code needs a session of its own then.
        return {"prompt": "login consent"} if label != "refresh-plain" else {}

    entries = [entry for entry in recording("refresh") if "revoke" not in entry["name"]]
    with recorded.browser() as browser:
        Conversation(recorded, browser, prepare).replay(entries)


def test_tokens_for_resources_and_organizations_are_as_recorded(recorded: Stand) -> None:
    organizations = "urn:logto:resource:organizations"
    scopes = EVERYTHING + " read:things write:things invite:member"

    def prepare(label: str) -> dict[str, Any]:
        if label == "carol-no-resource":
            return {"who": CAROL}
        if label == "resource-but-no-resource-scopes":
            return {"who": CAROL, "resource": RESOURCE}
        if label == "code-with-resource-and-org-resource":
            return {"who": CAROL, "resource": [RESOURCE, organizations], "scope": scopes}
        who = ALICE if label == "alice-no-role-resource" else CAROL
        return {"who": who, "resource": RESOURCE, "scope": EVERYTHING + " read:things write:things"}

    with recorded.browser() as browser:
        entries = recording("resources")
        Conversation(recorded, browser, prepare).replay(entries[:-1])
    with recorded.browser() as browser:  # the last one is somebody else
        Conversation(recorded, browser, prepare).replay(entries[-1:])


def test_concurrent_exchanges_of_one_code_have_one_winner_who_loses_too(recorded: Stand) -> None:
    with recorded.browser() as browser:
        callback = browser.sign_in(ALICE)
        tokens = browser.exchange(callback)
        again = browser.token(browser.code_form(callback["code"]))
        after = browser.refresh(tokens["refresh_token"])
    assert (again.status_code, after.status_code) == (400, 400)


# -- userinfo, introspection, revocation ------------------------------------------------------------------------------


def ask(browser: Browser, name: str, tokens: dict[str, Any]) -> httpx2.Response:
    """The request that got the recorded answer `name`."""
    opaque, id_token = tokens["access_token"], tokens["id_token"]
    requests: dict[str, Callable[[], httpx2.Response]] = {
        "userinfo": lambda: browser.userinfo(opaque),
        "userinfo-no-token": lambda: browser.get("/oidc/me"),
        "userinfo-bad-token": lambda: browser.userinfo("nope"),
        "userinfo-basic": lambda: browser.get("/oidc/me", headers={"authorization": "Basic YTpi"}),
        "userinfo-with-jwt-at": lambda: browser.userinfo(id_token),
        "revoke-unknown": lambda: browser.endpoint("/oidc/token/revocation", {"token": "nope"}),
        "revoke-bad-client": lambda: browser.endpoint("/oidc/token/revocation", {"token": opaque}, "basic:wrong"),
        "revoke-idtoken": lambda: browser.endpoint("/oidc/token/revocation", {"token": id_token}),
        "revoke-jwt": lambda: browser.endpoint("/oidc/token/revocation", {"token": id_token}),
        "introspect-at": lambda: browser.endpoint("/oidc/token/introspection", {"token": opaque}),
        "introspect-rt": lambda: browser.endpoint("/oidc/token/introspection", {"token": tokens["refresh_token"]}),
        "introspect-bad": lambda: browser.endpoint("/oidc/token/introspection", {"token": "nope"}),
        "introspect-jwt": lambda: browser.endpoint("/oidc/token/introspection", {"token": id_token}),
        "GET-token": lambda: browser.get("/oidc/token"),
        "json-body": lambda: browser.client.post(
            "/oidc/token",
            json={"grant_type": "authorization_code"},
            auth=(CLIENT_ID, "a-secret-for-these-tests-only-01"),
        ),
        "par": lambda: browser.endpoint("/oidc/request", browser.query()[0]),
        "deleted-app-refresh": lambda: browser.refresh(tokens["refresh_token"]),
        "deleted-app-userinfo": lambda: browser.userinfo(opaque),
        "expired-secret": lambda: browser.refresh(tokens["refresh_token"]),
    }
    return requests[name]()


@pytest.mark.parametrize("name", sorted(recording("endpoints")))
def test_the_other_endpoints_answer_as_recorded(recorded: Stand, name: str) -> None:
    entry = recording("endpoints")[name]
    who = ALICE if name.startswith("introspect") else CAROL
    with recorded.browser() as browser:
        tokens = browser.tokens(who)
        recorded.state.config = dataclasses.replace(
            recorded.state.config, app_deleted=name.startswith("deleted-app"), secret_expired=name == "expired-secret"
        )
        got = ask(browser, name, tokens)
    assert got.status_code == entry["status"]
    assert {header: got.headers.get(header) for header in entry.get("headers", {})} == entry.get("headers", {})
    body = json.dumps(entry["body"]).replace("toxt5pbu3jqfgnnl3ksp9", CLIENT_ID)  # the application deleted there
    assert shape(got.json() if got.content else got.text) == json.loads(body)


def test_revoking_a_token_takes_the_grant_along(recorded: Stand) -> None:
    with recorded.browser() as browser:
        for kind in ("refresh_token", "access_token"):
            tokens = browser.tokens(ALICE)
            revoked = browser.endpoint("/oidc/token/revocation", {"token": tokens[kind]})
            assert (revoked.status_code, revoked.text) == (200, "")
            assert revoked.headers["content-type"] == "text/plain; charset=utf-8"
            assert browser.refresh(tokens["refresh_token"]).status_code == 400
            assert browser.userinfo(tokens["access_token"]).status_code == 401


# -- end_session ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", [item for item in named(recording("end-session")) if "answers" in item.values[0]])
def test_end_session_answers_as_recorded(recorded: Stand, receiver: Receiver, entry: dict[str, Any]) -> None:
    signed_in = not entry["name"].startswith("no-session")
    with recorded.browser() as browser, recorded.browser() as other:
        hint = browser.tokens(ALICE)["id_token"]
        if entry["name"] == "again-same-browser-after-cancel":
            form = forms(browser.get("/oidc/session/end", params={"client_id": CLIENT_ID}).text) or {}
            browser.post(form["action"], form["fields"])
            receiver.forms.clear()
        params = {name: hint if value == "$hint" else value for name, value in entry["params"].items()}
        used = browser if signed_in else other
        got = (
            used.post("/oidc/session/end", params)
            if entry["method"] == "POST"
            else used.get("/oidc/session/end", params=params)
        )
        seen = [answer(got)]
        if entry["inputs"] is not None:
            form = forms(got.text) or {}
            assert sorted(form["fields"]) == sorted(entry["inputs"])
            extra = {} if entry["name"] == "no-logout-field" else {"logout": "yes"}
            assert len(form["fields"]["xsrf"]) == 48
            seen.append(answer(used.post(form["action"], form["fields"] | extra)))
    assert seen == entry["answers"]
    assert len(receiver.forms) == entry["announced"]
    if "logout_token" in entry:
        assert shape(receiver.forms[0]["logout_token"]) == entry["logout_token"]
        assert receiver.user_agents == [""]


@pytest.mark.parametrize("entry", [item for item in named(recording("end-session")) if "status" in item.values[0]])
def test_end_session_refuses_hints_as_recorded(recorded: Stand, entry: dict[str, Any]) -> None:
    with recorded.browser() as browser:
        hint = browser.tokens(ALICE)["id_token"]
        if "$dropped" in entry["params"].values():
            recorded.state.keys.rotate()
            assert browser.get("/oidc/session/end", params={"id_token_hint": hint}).status_code == 200
            recorded.state.keys.rotate()
        params = {name: hint if value.startswith("$") else value for name, value in entry["params"].items()}
        got = browser.get("/oidc/session/end", params=params)
    assert (got.status_code, got.json()) == (entry["status"], entry["body"])


def test_an_expired_hint_is_accepted_and_somebody_elses_ends_this_session_all_the_same(recorded: Stand) -> None:
    with recorded.browser() as browser, recorded.browser() as other:
        hint = browser.tokens(ALICE)["id_token"]
        other.sign_in(CAROL)
        recorded.state.clock.offset = 7200
        page = other.get("/oidc/session/end", params={"id_token_hint": hint, "post_logout_redirect_uri": SIGNED_OUT})
        other.walk(page)
        assert other.walk(other.authorize(prompt="none"))["error"] == "login_required"
        assert "code" in browser.walk(browser.authorize(prompt="none"))


# -- what happens after … ---------------------------------------------------------------------------------------------


def happen(stand: Stand, browser: Browser, event: str) -> None:
    """Make the recorded event happen to the person signed in."""
    state, person = stand.state, stand.state.people[CAROL]
    api = f"/sandbox/api/people/{CAROL}"
    if event == "suspended":
        state.change_person(CAROL, suspended=True)
    elif event == "suspended-then-unsuspended":
        state.change_person(CAROL, suspended=True)
        state.change_person(CAROL, suspended=False)
    elif event == "deleted":
        state.change_person(CAROL, deleted=True)
    elif event == "session-revoked":
        browser.client.delete(api + "/sessions")
    elif event.startswith("session-revoked-grants"):
        browser.client.delete(api + "/sessions?grants=all")
    elif event == "grant-deleted":
        browser.client.delete(api + "/grants")
    elif event == "role-removed":
        state.change_person(CAROL, roles=())
    elif event == "org-role-removed":
        state.change_person(CAROL, organization_roles={ORGANIZATION: ()})
    elif event == "org-member-removed":
        state.change_person(CAROL, organization_roles={})
    elif event == "profile-changed":
        state.change_person(CAROL, name="New Name", custom_data={"plan": "free"})
    elif event == "identity-unlinked":
        state.change_person(CAROL, linked=False)
    elif event == "end-session":
        browser.sign_out()
    else:
        assert event in ("control", "password-changed")
        assert person.registered


@pytest.mark.parametrize(
    "entry", [pytest.param(entry, id=f"{entry['event']}-{entry['mode']}") for entry in recording("state-changes")]
)
def test_events_have_the_recorded_effects(recorded: Stand, entry: dict[str, Any]) -> None:
    always = entry["mode"] == "always"
    recorded.state.config = dataclasses.replace(recorded.state.config, always_issue_refresh_token=always)
    with recorded.browser() as browser:
        offline = {} if entry["mode"] == "offline" else {"scope": EVERYTHING.replace("offline_access ", "")}
        tokens = browser.tokens(CAROL, **offline)
        assert ("refresh_token" in tokens) == (entry["refresh"] is not None)
        happen(recorded, browser, entry["event"])
        if entry["refresh"] is not None:
            refreshed = browser.refresh(tokens["refresh_token"])
            assert [refreshed.status_code, refreshed.json().get("error")] == entry["refresh"]
        assert browser.userinfo(tokens["access_token"]).status_code == entry["userinfo"]
        silent = browser.walk(browser.authorize(prompt="none", **offline))
        assert silent.get("error", "code") == entry["silent"]


def test_a_refresh_brings_current_claims(recorded: Stand) -> None:
    with recorded.browser() as browser:
        tokens = browser.tokens(CAROL)
        recorded.state.change_person(CAROL, roles=(), organization_roles={}, linked=False, name="New Name")
        refreshed = browser.refresh(tokens["refresh_token"]).json()
        claims = jwt.decode(refreshed["id_token"], options={"verify_signature": False})
    assert (claims["roles"], claims["organizations"], claims["identities"]) == ([], [], {})
    assert claims["name"] == "New Name"


# -- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_is_as_recorded_and_follows_the_host(recorded: Stand) -> None:
    entry = recording("metadata")
    with recorded.browser() as browser:
        path = "/oidc/.well-known/openid-configuration"
        here = browser.get(path)
        there = browser.get(path, headers={"host": entry["other_host"]["host"]})
        keys = browser.get("/oidc/jwks")
    assert here.json() == entry["discovery"]
    assert there.json() == entry["other_host"]["body"]
    assert set(entry["headers"]) <= set(here.headers)
    assert "cache-control" not in here.headers
    assert keys.headers["content-type"] == entry["jwks"]["content_type"]
    assert keys.headers["cache-control"] == entry["jwks"]["cache_control"]
    assert [list(key) for key in keys.json()["keys"]] == entry["jwks"]["keys"]


def test_key_rotation_is_as_recorded(recorded: Stand) -> None:
    with recorded.browser() as browser:
        for entry in recording("metadata")["rotations"]:
            browser.client.post("/sandbox/api/keys", json={"kind": entry["kind"].rstrip("123") or "EC"})
            keys = browser.get("/oidc/jwks").json()["keys"]
            header = jwt.get_unverified_header(browser.tokens(ALICE)["id_token"])
            found = browser.get("/oidc/.well-known/openid-configuration").json()
            assert [key["kty"] for key in keys] == entry["kinds"]
            assert [set(key) for key in keys] == [set(names) for names in entry["keys"]]
            assert header == {"alg": entry["id_token_algorithm"], "kid": keys[0]["kid"]}
            assert found["id_token_signing_alg_values_supported"] == entry["advertised"]


def test_cookies_become_secure_behind_a_trusted_tls_proxy(recorded: Stand) -> None:
    recorded.state.config = dataclasses.replace(recorded.state.config, trust_proxy_header=True)
    with recorded.browser() as browser:
        query, _ = browser.query()
        forwarded = {"x-forwarded-proto": "https", "x-forwarded-host": "auth.example.test"}
        got = browser.get("/oidc/auth", params=query, headers=forwarded)
        found = browser.get("/oidc/.well-known/openid-configuration", headers=forwarded).json()
    assert all("secure" in line for line in cookies(got.headers.get_list("set-cookie")))
    assert found["token_endpoint"] == "https://auth.example.test/oidc/token"
    assert found["issuer"] == f"http://{HOST}/oidc"
