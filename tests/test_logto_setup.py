"""`postern logto` against the stand-in Logto over HTTP: from an empty one, again, after being killed, and back."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from proxy.errors import LogtoRefused, LogtoUnavailable
from proxy.logto_plan import MANAGEMENT_ROLE
from proxy.logto_setup import (
    Access,
    Extras,
    NotSetUp,
    admin_secret,
    manager_for,
    settings_before,
    wanted_for,
    write_config,
    write_env,
)
from proxy.sandbox import SANDBOX_ADMIN_SECRET
from proxy.sandbox.faults import Fault
from proxy.settings import ApplicationSettings, SettingsError
from tests.logto_stand import DISCORD, PUBLIC, Stand, changing, run

EMPTY = Path(os.devnull)
EVERYTHING = Extras(discord=DISCORD, discord_only=True, roles=("ops", "staff"), organization="Acme Ltd")
MORE = {"POSTERN_LOGTO__RESOURCES": "https://api.example.com"}
BASE = PUBLIC + "/.postern"


def test_an_empty_logto_is_set_up() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(EVERYTHING, environ=MORE)
        held = stand.held()
        machine, application = sorted(held["applications"], key=lambda it: str(it["type"]))
        assert application["oidcClientMetadata"] == {
            "redirectUris": [BASE + "/callback"],
            "postLogoutRedirectUris": [BASE + "/signed-out"],
            "backchannelLogoutUri": BASE + "/backchannel-logout",
            "backchannelLogoutSessionRequired": True,
        }
        assert application["customClientMetadata"] == {"alwaysIssueRefreshToken": True}
        assert (machine["type"], held["managers"]) == ("MachineToMachine", 1)
        (hook,) = held["hooks"]
        assert (hook["config"], hook["enabled"]) == ({"url": BASE + "/hooks/logto"}, True)
        assert "User.SuspensionStatus.Updated" in hook["events"]
        (connector,) = held["connectors"]
        assert connector["config"] == {"clientId": DISCORD[0], "clientSecret": DISCORD[1], "scope": "identify email"}
        assert held["experience"]["socialSignInConnectorTargets"] == ["discord"]
        assert held["experience"]["signIn"]["methods"] == []
        assert held["experience"]["signUp"] == {"identifiers": [], "password": False, "verify": False}
        assert held["experience"]["unknownSessionRedirectUrl"] == PUBLIC + "/"
        assert {"roles", "identities"} <= set(held["claims"])
        assert [it["indicator"] for it in held["resources"]] == ["https://api.example.com"]
        assert {"ops", "staff"} <= {it["name"] for it in held["roles"]}
        assert "Acme Ltd" in {it["name"] for it in held["organizations"]}

    run(conversation)


def test_a_second_run_changes_nothing_and_says_so() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(EVERYTHING, environ=MORE)
        before = stand.held()
        assert changing(await stand.run(EVERYTHING, environ=MORE)) == []
        assert stand.held() == before

    run(conversation)


def test_changes_made_by_hand_survive() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(EVERYTHING)
        console = stand.state.console
        application = next(it for it in console.applications.values() if it["type"] == "Traditional")
        application["oidcClientMetadata"]["redirectUris"].append("http://localhost:3000/.postern/callback")
        application["oidcClientMetadata"]["corsAllowedOrigins"] = ["https://other.example.com"]
        application["customClientMetadata"] = {"alwaysIssueRefreshToken": False, "refreshTokenTtlInDays": 30}
        application["customData"]["theirs"] = {"kept": True}
        application["name"] = "Renamed"
        (connector,) = console.connectors.values()
        connector["config"] = {**connector["config"], "clientSecret": "stale", "prompt": "none"}
        (hook,) = console.hooks.values()
        hook |= {"events": ["Role.Created", "User.Deleted"], "enabled": False}
        hook["config"]["headers"] = {"x-theirs": "1"}
        console.sign_in_experience |= {
            "unknownSessionRedirectUrl": "https://elsewhere.example.com/",
            "signUp": {"identifiers": ["email"], "password": True, "verify": True, "secondaryIdentifiers": []},
            "socialSignInConnectorTargets": ["github"],
            "customCss": "body {}",
        }
        console.id_token_claims[:] = ["custom_data"]
        assert len(changing(await stand.run(EVERYTHING))) == 5
        assert application["oidcClientMetadata"]["redirectUris"][1] == "http://localhost:3000/.postern/callback"
        assert application["oidcClientMetadata"]["corsAllowedOrigins"] == ["https://other.example.com"]
        assert application["customClientMetadata"] == {"alwaysIssueRefreshToken": True, "refreshTokenTtlInDays": 30}
        assert (application["customData"]["theirs"], application["name"]) == ({"kept": True}, "Renamed")
        assert connector["config"] == {
            "clientId": DISCORD[0],
            "clientSecret": DISCORD[1],
            "scope": "identify email",
            "prompt": "none",
        }
        assert hook["events"][:2] == ["Role.Created", "User.Deleted"]
        assert (hook["enabled"], hook["config"]["headers"]) == (True, {"x-theirs": "1"})
        experience = console.sign_in_experience
        assert experience["unknownSessionRedirectUrl"] == "https://elsewhere.example.com/"
        assert experience["socialSignInConnectorTargets"] == ["github", "discord"]
        assert (experience["customCss"], experience["signUp"]["secondaryIdentifiers"]) == ("body {}", [])
        assert console.id_token_claims[0] == "custom_data"
        assert changing(await stand.run(EVERYTHING)) == []

    run(conversation)


def test_killed_after_any_request_the_next_run_completes_it() -> None:
    async def conversation(stand: Stand) -> None:
        steps = await stand.run(EVERYTHING, environ=MORE)
        complete, requests = stand.held(), sum(bool(step.method) for step in steps)
        assert requests >= 10
        for count in range(1, requests):
            stand.state.console = type(stand.state.console).of(
                stand.state.config.__class__(client_id=""), ("admin", "member")
            )
            await stand.run(EVERYTHING, stop_after=count, environ=MORE)
            await stand.run(EVERYTHING, environ=MORE)
            assert stand.held() == complete, f"killed after {count} requests"

    run(conversation)


def test_two_gateways_on_one_logto_do_not_touch_each_other() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(Extras())
        first = next(it for it in stand.state.console.applications.values() if it["type"] == "Traditional")
        before = {**first}
        await stand.run(Extras(), public_url="https://other.example.com")
        kinds = [it["type"] for it in stand.state.console.applications.values()]
        assert sorted(kinds) == ["MachineToMachine"] * 2 + ["Traditional"] * 2
        assert (first, len(stand.state.console.hooks)) == (before, 2)
        assert stand.state.console.sign_in_experience["unknownSessionRedirectUrl"] == PUBLIC + "/"

    run(conversation)


def test_what_it_tells_is_enough_for_the_gateway_and_for_the_next_run() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(EVERYTHING)
        async with stand.setup(EVERYTHING) as setup:
            told = await setup.result()
            redirect = setup.discord_redirect(stand.url)
        assert redirect == f"{stand.url}/callback/sandboxdiscd"
        assert told["LOGTO_APP_ID"] == stand.state.config.client_id
        assert told["LOGTO_APP_SECRET"] == stand.state.config.client_secret
        (hook,) = stand.state.console.hooks.values()
        assert told["POSTERN_LOGTO__WEBHOOK_KEY"] == hook["signingKey"]
        own = Access(client_id=told["LOGTO_M2M_ID"], client_secret=told["LOGTO_M2M_SECRET"])
        later = {name: it for name, it in told.items() if not name.startswith("LOGTO_M2M")}
        assert changing(await stand.run(EVERYTHING, access=own, environ=later)) == []

    run(conversation)


BY_HOST = {
    "POSTERN_LOGTO__APPLICATION__0__HOSTS": "shop.example.org",
    "POSTERN_LOGTO__APPLICATION__1__HOSTS": "*.b.example.com",
    "POSTERN_LOGTO__APPLICATION__1__PUBLIC_URL": "https://b.b.example.com",
    "POSTERN_LOGTO__APPLICATION__1__COOKIE_DOMAIN": "b.example.com",
}


def test_each_application_by_host_is_made_told_kept_and_taken_back() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(environ=BY_HOST)
        async with stand.setup(environ=BY_HOST) as setup:
            told = await setup.result()
        console = stand.state.console
        people = {it["id"]: it for it in console.applications.values() if it["type"] == "Traditional"}
        named = [
            told["LOGTO_APP_ID"],
            told["POSTERN_LOGTO__APPLICATION__0__APP_ID"],
            told["POSTERN_LOGTO__APPLICATION__1__APP_ID"],
        ]
        assert sorted(named) == sorted(people)
        for app_id, base in zip(named, (PUBLIC, "https://shop.example.org", "https://b.b.example.com"), strict=True):
            addresses = people[app_id]["oidcClientMetadata"]
            assert addresses["redirectUris"] == [base + "/.postern/callback"]
            assert addresses["postLogoutRedirectUris"] == [base + "/.postern/signed-out"]
            assert addresses["backchannelLogoutUri"] == base + "/.postern/backchannel-logout"
            assert people[app_id]["customClientMetadata"] == {"alwaysIssueRefreshToken": True}
        assert told["POSTERN_LOGTO__APPLICATION__1__APP_SECRET"] == console.secret_of(named[2])
        assert len(console.hooks) == 1
        later = {**BY_HOST, **{name: it for name, it in told.items() if not name.startswith("LOGTO_M2M")}}
        assert changing(await stand.run(environ=later)) == []
        people[named[1]]["oidcClientMetadata"]["redirectUris"] = []
        assert changing(await stand.run(environ=later)) == ["change application Postern (shop.example.org)"]
        async with stand.setup(environ=later) as setup:
            async for _ in setup.carry_out(await setup.plan_removal()):
                pass
        assert stand.held()["applications"] == []

    run(conversation)


def test_a_run_that_was_killed_between_two_applications_goes_on() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(environ=BY_HOST, stop_after=2)
        async with stand.setup(environ=BY_HOST) as setup:
            with pytest.raises(LogtoUnavailable):
                await setup.result()
        await stand.run(environ=BY_HOST)
        async with stand.setup(environ=BY_HOST) as setup:
            assert len(await setup.result()) == 9
        assert len(stand.held()["applications"]) == 4

    run(conversation)


def test_remove_takes_back_what_was_made_and_nothing_else() -> None:
    async def conversation(stand: Stand) -> None:
        empty = stand.held()
        stand.state.console.add_role({"name": "staff"})
        await stand.run(EVERYTHING, environ=MORE)
        async with stand.setup(EVERYTHING, environ=MORE) as setup:
            async for _ in setup.carry_out(await setup.plan_removal()):
                pass
            assert await setup.plan_removal() == ()
        held = stand.held()
        assert {it["name"] for it in held["roles"]} == {MANAGEMENT_ROLE, "admin", "member", "staff"}
        assert held["applications"] == held["hooks"] == held["connectors"] == held["resources"] == []
        assert held["organizations"] == empty["organizations"]
        assert held["experience"]["socialSignInConnectorTargets"] == []
        assert held["experience"]["unknownSessionRedirectUrl"] is None

    run(conversation)


def test_an_application_made_by_hand_is_used_and_stays() -> None:
    async def conversation(stand: Stand) -> None:
        addresses = {"redirectUris": [BASE + "/callback"], "postLogoutRedirectUris": []}
        body = {"name": "by hand", "type": "Traditional", "oidcClientMetadata": addresses, "customData": {"theirs": 1}}
        made = stand.state.console.add_application(body)
        await stand.run(EVERYTHING)
        assert [it["name"] for it in stand.state.console.applications.values()] == ["by hand", "Postern setup"]
        assert made["oidcClientMetadata"]["backchannelLogoutSessionRequired"] is True
        async with stand.setup(EVERYTHING) as setup:
            async for _ in setup.carry_out(await setup.plan_removal()):
                pass
        assert list(stand.state.console.applications) == [made["id"]]
        assert made["customData"] == {"theirs": 1}

    run(conversation)


def test_resources_that_header_templates_name_are_made_and_none_that_every_logto_has() -> None:
    async def conversation(stand: Stand) -> None:
        values = {"X-Api": "{access_token:https://reports.example.com}", "X-Org": "{organization_token:acme}"}
        route = {
            "POSTERN_ROUTE__0__NAME": "app",
            "POSTERN_ROUTE__0__UPSTREAM": "http://127.0.0.1:9",
            "POSTERN_ROUTE__0__HEADERS__SET": json.dumps(values),
        }
        await stand.run(environ=MORE | route)
        made = [it["indicator"] for it in stand.held()["resources"]]
        assert sorted(made) == ["https://api.example.com", "https://reports.example.com"]

    run(conversation)


def test_without_discord_nothing_of_it_is_made() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(Extras(discord_only=True, machine=False))
        held = stand.held()
        assert (held["connectors"], held["managers"]) == ([], 0)
        assert held["experience"]["signIn"]["methods"][0]["identifier"] == "username"  # or nobody could sign in
        async with stand.setup(Extras(machine=False)) as setup:
            assert "LOGTO_M2M_ID" not in await setup.result()
            assert setup.discord_redirect(stand.url) is None

    run(conversation)


def test_logto_reaches_the_gateway_under_a_name_of_its_own() -> None:
    async def conversation(stand: Stand) -> None:
        await stand.run(Extras(gateway_url="http://postern:3000"))
        config = stand.state.config
        assert config.backchannel_logout_uri == "http://postern:3000/.postern/backchannel-logout"
        assert config.redirect_uris == (BASE + "/callback",)

    run(conversation)


@pytest.mark.parametrize(
    ("access", "error"),
    [
        (Access(client_id="unknown", client_secret="x"), "invalid_client"),
        (Access(admin_secret="wrong"), "invalid_client"),
        (
            Access(admin="http://admin.example.com", internal_admin="HERE", admin_secret=SANDBOX_ADMIN_SECRET),
            "invalid_client",
        ),
    ],
)
def test_who_may_not_is_told_so(access: Access, error: str) -> None:
    async def conversation(stand: Stand) -> None:
        given = dataclasses.replace(
            access, internal_admin=access.internal_admin and stand.url, admin=access.admin or stand.url
        )
        with pytest.raises(LogtoRefused) as caught:
            await stand.run(access=given)
        assert caught.value.error == error
        assert SANDBOX_ADMIN_SECRET not in str(caught.value)

    run(conversation)


def test_the_admin_client_is_asked_for_under_its_public_name() -> None:
    """In a compose network Logto is reached under another name than it knows itself by."""

    async def conversation(stand: Stand) -> None:
        access = Access(admin="http://admin.example.com", internal_admin=stand.url, admin_secret=SANDBOX_ADMIN_SECRET)
        await stand.run(access=access)
        assert stand.state.console.applications

    run(conversation, admin_endpoint="http://admin.example.com")


def test_an_application_without_the_role_is_refused_by_the_api() -> None:
    async def conversation(stand: Stand) -> None:
        made = stand.state.console.add_application({"name": "m", "type": "MachineToMachine"})
        secret = stand.state.console.secret_of(made["id"]) or ""
        with pytest.raises(LogtoRefused, match="forbidden"):
            await stand.run(access=Access(client_id=made["id"], client_secret=secret))

    run(conversation)


def test_an_outage_in_the_middle_is_an_outage() -> None:
    async def conversation(stand: Stand) -> None:
        stand.state.faults.append(Fault("page", status=502))
        with pytest.raises(LogtoUnavailable):
            await stand.run()
        stand.state.faults.clear()
        assert stand.state.console.applications == {}

    run(conversation)


def test_results_that_are_missing_are_said_to_be() -> None:
    async def conversation(stand: Stand) -> None:
        async with stand.setup() as setup:
            with pytest.raises(LogtoUnavailable, match="not there"):
                await setup.result()
            await stand.run()
            for secrets in stand.state.console.secrets.values():
                secrets[0]["expiresAt"] = 1
            with pytest.raises(LogtoUnavailable, match="secret"):
                await setup.result()

    run(conversation)


# -- before anything is asked -----------------------------------------------------------------------------------------


def test_settings_may_lack_what_the_setup_makes_and_nothing_else() -> None:
    given = {"POSTERN_PUBLIC_URL": PUBLIC, "LOGTO_ENDPOINT": "https://auth.example.com"}
    settings, pending = settings_before(EMPTY, given)
    assert (settings.public_url, pending) == (PUBLIC, frozenset({"logto.app_id", "logto.app_secret", "route"}))
    complete = {**given, "LOGTO_APP_ID": "a", "LOGTO_APP_SECRET": "b", "POSTERN_UPSTREAM": "http://127.0.0.1:9"}
    assert settings_before(EMPTY, complete)[1] == frozenset()
    with pytest.raises(SettingsError) as caught:
        settings_before(EMPTY, {"LOGTO_ENDPOINT": "https://auth.example.com"})
    assert [problem.key for problem in caught.value.problems] == ["public_url"]
    with pytest.raises(SettingsError):
        settings_before(EMPTY, {**complete, "POSTERN_PUBLIC_URL": "nonsense"})
    settings, pending = settings_before(EMPTY, {**complete, **BY_HOST})
    assert [it.hosts for it in settings.logto.application] == [("shop.example.org",), ("*.b.example.com",)]
    assert pending == {f"logto.application[{n}].{key}" for n in (0, 1) for key in ("app_id", "app_secret")}
    with pytest.raises(SettingsError) as caught:
        settings_before(EMPTY, {**complete, "POSTERN_LOGTO__APPLICATION__0__APP_ID": "x"})
    assert [problem.key for problem in caught.value.problems] == ["logto.application[0].hosts"]


@pytest.mark.parametrize(
    ("endpoint", "admin"),
    [
        ("http://localhost:3001", "http://localhost:3002"),
        ("https://auth.example.com", "https://auth.example.com:3002"),
        ("http://[::1]:3001", "http://[::1]:3002"),
    ],
)
def test_the_admin_endpoint_is_the_usual_one_unless_told_otherwise(endpoint: str, admin: str) -> None:
    settings, _ = settings_before(EMPTY, {"POSTERN_PUBLIC_URL": PUBLIC, "LOGTO_ENDPOINT": endpoint})
    assert manager_for(settings, Access(admin_secret="x")).tokens_at.public == admin
    told = manager_for(
        settings, Access(admin_secret="x", admin="https://admin.example.com", internal_admin="http://l:3002")
    )
    assert (told.tokens_at.host, told.tokens_at.reach) == ("admin.example.com", "http://l:3002")
    with pytest.raises(NotSetUp, match="LOGTO_M2M_ID"):
        manager_for(settings, Access())


PSQL = """#!/bin/sh
test "$PGPASSWORD" = "p@ss" -a "$PGHOST" = db -a "$PGPORT" = 5433 -a "$PGUSER" = logto -a "$PGDATABASE" = identities || {
  echo "password authentication failed" >&2; exit 2; }
case "$*" in *p@ss*) exit 3;; esac
cat "$0.answer"
"""


def test_the_admin_secret_is_read_with_psql_and_its_password_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    psql = tmp_path / "psql"
    psql.write_text(PSQL)
    psql.chmod(0o755)
    answer = tmp_path / "psql.answer"
    answer.write_text("the-secret\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    url = "postgres://logto:p%40ss@db:5433/identities"
    assert admin_secret(url) == "the-secret"
    with pytest.raises(NotSetUp, match="authentication failed") as caught:
        admin_secret("postgres://logto:wr%40ng@db:5433/identities")
    assert "wr" not in str(caught.value).replace("wrong", "")
    answer.write_text("\n")
    with pytest.raises(NotSetUp, match="started once"):
        admin_secret(url)
    with pytest.raises(NotSetUp, match="no URL"):
        admin_secret("postgres://logto@db:port/x")
    psql.write_text("no program at all")
    with pytest.raises(NotSetUp, match="OSError"):
        admin_secret(url)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NotSetUp, match="psql"):
        admin_secret(url)


def test_an_env_file_is_written_whole_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("# about\nLOGTO_APP_ID=old\n# LOGTO_APP_SECRET=\nPOSTGRES_PASSWORD=kept # so\n\nexport X=1\n")
    write_env(path, {"LOGTO_APP_ID": "new", "LOGTO_APP_SECRET": "s", "LOGTO_M2M_ID": "m"})
    assert path.read_text() == (
        "# about\nLOGTO_APP_ID=new\nLOGTO_APP_SECRET=s\nPOSTGRES_PASSWORD=kept # so\n\nexport X=1\nLOGTO_M2M_ID=m\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = tmp_path / "postern.toml"
    told = {
        "LOGTO_APP_ID": "a",
        "LOGTO_APP_SECRET": 'q"\\',
        "POSTERN_LOGTO__WEBHOOK_KEY": "k" * 32,
        "LOGTO_M2M_SECRET": "m",
    }
    write_config(config, told)
    table = {"app_id": "a", "app_secret": 'q"\\', "webhook_key": "k" * 32}
    assert (tomllib.loads(config.read_text()), stat.S_IMODE(config.stat().st_mode)) == ({"logto": table}, 0o600)
    one = ApplicationSettings(
        hosts=("b.test", "*.b.test"), cookie_domain="b.test", app_id="x", app_secret=SecretStr("x")
    )
    own = {"POSTERN_LOGTO__APPLICATION__0__APP_ID": "b", "POSTERN_LOGTO__APPLICATION__0__APP_SECRET": "s"}
    write_config(config, told | own, [one])
    second = {"hosts": ["b.test", "*.b.test"], "public_url": "", "cookie_domain": "b.test"}
    second |= {"app_id": "b", "app_secret": "s"}
    assert tomllib.loads(config.read_text()) == {"logto": {**table, "application": [second]}}
    config.unlink()
    fresh = tmp_path / "fresh.env"
    write_env(fresh, {"A": "1"})
    assert fresh.read_text() == "A=1\n"
    with pytest.raises(OSError):
        write_env(tmp_path / "missing" / ".env", {"A": "1"})
    directory = tmp_path / "directory"
    directory.mkdir()
    with pytest.raises(OSError):
        write_env(directory, {"A": "1"})
    assert sorted(it.name for it in tmp_path.iterdir()) == [".env", "directory", "fresh.env"]


def test_what_sign_ins_ask_for_the_id_token_shall_carry() -> None:
    environ = {
        "POSTERN_PUBLIC_URL": PUBLIC,
        "LOGTO_ENDPOINT": "http://127.0.0.1:9",
        "POSTERN_ROUTE__0__NAME": "acme",
        "POSTERN_ROUTE__0__UPSTREAM": "http://127.0.0.1:9",
    }
    for more, asked in (({}, False), ({"POSTERN_ROUTE__0__ORGANIZATION": "acme00000001"}, True)):
        settings, pending = settings_before(EMPTY, environ | more)
        wanted = wanted_for(settings, pending, Extras())
        assert ("urn:logto:scope:organizations" in wanted.scopes) is asked
