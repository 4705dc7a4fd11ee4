"""What a Logto must hold for a gateway to sign people in with it, against what it does hold: the steps from here to there.

Pure: what was found goes in, requests to make come out. Two laws. Nothing that others set is lost: Logto's PATCH replaces whole
objects, so every body starts from what was found. And what is already right is no step, which is what makes it safe to run again
after being killed at any point: each thing is found again by what it must be (its address, its type), never by having been made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Json = Mapping[str, Any]

MANAGEMENT_ROLE: Final = (
    "Logto Management API access"  # every Logto has it; the API knows no smaller right than all of it
)
DISCORD: Final = "discord-universal"
EVENTS: Final = (
    *("PostSignIn", "PostRegister"),
    *("User.Deleted", "User.Data.Updated", "User.SuspensionStatus.Updated"),
    *("Role.Deleted", "Role.Data.Updated", "Role.Scopes.Updated"),
    *("Organization.Deleted", "Organization.Data.Updated", "Organization.Membership.Updated"),
)
# Scope -> claim that the ID token then carries. userinfo has them all; these save Logto a question each time.
_CLAIMS: Final = {
    "roles": ("roles",),
    "identities": ("identities",),
    "custom_data": ("custom_data",),
    "urn:logto:scope:organizations": ("organizations",),
    "urn:logto:scope:organization_roles": ("organization_roles",),
}
_MARK: Final = "postern"  # in an application's customData: what this program made, for `remove`


@dataclass(frozen=True, slots=True)
class Client:
    """One of the gateway's applications, with its addresses. `app_id` is that of the settings, or "" while there is none."""

    app_name: str
    app_id: str
    callback: str
    signed_out: str
    backchannel: str


@dataclass(frozen=True, slots=True)
class Wanted(Client):
    """What the gateway needs: its main application, what goes with that, and the `others` that it is by host."""

    hook: str
    home: str
    scopes: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    organization: str | None = None
    discord: tuple[str, str] | None = field(default=None, repr=False)  # client id and secret
    discord_only: bool = False
    machine: bool = True  # an application of its own for later runs
    others: tuple[Client, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What Logto holds, as its Management API shows it."""

    applications: Sequence[Json]
    connectors: Sequence[Json]
    hooks: Sequence[Json] = field(repr=False)
    roles: Sequence[Json]
    resources: Sequence[Json]
    organizations: Sequence[Json]
    experience: Json
    claims: Sequence[str]
    managers: frozenset[str]  # ids of the applications that have the role for the Management API


@dataclass(frozen=True, slots=True)
class Step:
    """One request to make, or with `action` "keep" none. `path` may hold `{app}` and such: ids that an earlier step `binds`.

    `note` names what is made here as `remove` will look for it; `details` says what changes, without secrets.
    """

    action: Literal["create", "change", "keep", "delete"]
    what: str
    details: tuple[str, ...] = ()
    method: str = ""
    path: str = ""
    body: Any = field(default=None, repr=False)
    binds: str = ""
    bound: str = ""  # the id that `binds` stands for, when it is known already
    note: str = ""


def plan(wanted: Wanted, found: Found) -> tuple[Step, ...]:
    """All that is to be there, in an order in which it can be made."""
    steps = [*_machine(wanted, found), *_discord(wanted, found), *_experience(wanted, found)]
    steps += [_claims(wanted, found), _hook(wanted, found), *_named(wanted, found)]
    # Noted before it is made: killed in between, this program would not know its own things again.
    made = [step.note for step in steps if step.note and step.action == "create"]
    main, *others = find_applications(wanted, found)
    more = [_application(client, known, ()) for client, known in zip(wanted.others, others, strict=True)]
    return (_application(wanted, main, made, binds="app"), *more, *steps)


def plan_removal(wanted: Wanted, found: Found) -> tuple[Step, ...]:
    """Take back what was made, and nothing that merely was made use of. The application with the note goes last."""
    application, *others = find_applications(wanted, found)
    mark = mark_of(application)
    made = frozenset(item for item in mark.get("made", ()) if isinstance(item, str))
    steps = list(_experience_removed(wanted, found, ours=f"connectors:{DISCORD}" in made))
    doomed = [
        *(
            ("Discord connector", "connectors", it)
            for it in found.connectors
            if f"connectors:{it['connectorId']}" in made
        ),
        *((f"webhook to {wanted.hook}", "hooks", it) for it in found.hooks if it["config"].get("url") == wanted.hook),
        *((f"role {it['name']}", "roles", it) for it in found.roles if f"roles:{it['name']}" in made),
        *(
            (f"API resource {it['indicator']}", "resources", it)
            for it in found.resources
            if f"resources:{it['indicator']}" in made
        ),
        *(
            (f"organization {it['name']}", "organizations", it)
            for it in found.organizations
            if f"organizations:{it['name']}" in made
        ),
    ]
    steps += [Step("delete", what, (), "DELETE", f"{where}/{it['id']}") for what, where, it in doomed]
    for known in (*others, application):
        steps += _application_removed(known)
    machine = find_machine(wanted, found)
    if machine is not None:  # the very last: the token in use may be its own
        steps.append(Step("delete", f"application {machine['name']}", (), "DELETE", f"applications/{machine['id']}"))
    return tuple(steps)


def _application_removed(application: Json | None) -> Iterator[Step]:
    mark = mark_of(application)
    if application is None or not mark:
        return
    what, path = f"application {application['name']}", f"applications/{application['id']}"
    if mark.get("own") is True:
        yield Step("delete", what, (), "DELETE", path)
        return
    body = {"customData": {name: it for name, it in application["customData"].items() if name != _MARK}}
    yield Step("change", what, ("made by hand: stays, without our note",), "PATCH", path, body)


def _experience_removed(wanted: Wanted, found: Found, *, ours: bool) -> Iterator[Step]:
    body: dict[str, Any] = {}
    targets = found.experience.get("socialSignInConnectorTargets", ())
    if found.experience.get("unknownSessionRedirectUrl") == wanted.home:
        body["unknownSessionRedirectUrl"] = None
    if ours and "discord" in targets:
        body["socialSignInConnectorTargets"] = [target for target in targets if target != "discord"]
    if body:
        yield Step(
            "change", "sign-in experience", tuple(f"{name} taken back" for name in body), "PATCH", "sign-in-exp", body
        )


def find_applications(wanted: Wanted, found: Found) -> list[Json | None]:
    """The gateway's applications, the main one first. No two of them are the same, whatever addresses somebody gave to one."""
    there: list[Json | None] = []
    clients = (wanted, *wanted.others)
    for client in clients:
        taken = {it["id"] for it in there if it is not None} | {it.app_id for it in clients if it is not client}
        there.append(find_application(client, [it for it in found.applications if it["id"] not in taken]))
    return there


def find_application(wanted: Client, applications: Sequence[Json]) -> Json | None:
    """The application of `wanted`: the one of the settings, the one that has its redirect URI, or one of its name without any.

    Never one that merely has the name: two gateways on one Logto have each their own.
    """
    candidates = [it for it in applications if it["type"] == "Traditional"]
    for application in candidates:
        if wanted.app_id and application["id"] == wanted.app_id:
            return application
    for application in candidates:
        if wanted.callback in application["oidcClientMetadata"].get("redirectUris", ()):
            return application
    for application in candidates:
        if application["name"] == wanted.app_name and not application["oidcClientMetadata"].get("redirectUris"):
            return application
    return None


def find_machine(wanted: Wanted, found: Found) -> Json | None:
    """The application that later runs use. Without the role it is only ours by its name and its mark."""
    for application in found.applications:
        mark = (application.get("customData") or {}).get(_MARK)
        if (
            application["type"] == "MachineToMachine"
            and isinstance(mark, Mapping)
            and mark.get("for") == wanted.callback
        ):
            return application
    return None


def find_hook(wanted: Wanted, found: Found) -> Json | None:
    """The webhook to this gateway. Should there be two, the first: which of them is Postern's is told by the signing key."""
    return next((hook for hook in found.hooks if hook["config"].get("url") == wanted.hook), None)


def mark_of(application: Json | None) -> Json:
    """Our note on an application; empty when there is none."""
    mark = ((application or {}).get("customData") or {}).get(_MARK)
    return mark if isinstance(mark, Mapping) else {}


def _application(wanted: Client, application: Json | None, made: Sequence[str], *, binds: str = "") -> Step:
    what = f"application {wanted.app_name}"
    addresses = dict(application["oidcClientMetadata"]) if application is not None else {}
    tokens = dict(application.get("customClientMetadata") or {}) if application is not None else {}
    details = []
    for key, uri in (("redirectUris", wanted.callback), ("postLogoutRedirectUris", wanted.signed_out)):
        known = list(addresses.get(key, ()))
        if uri not in known:
            details.append(f"{key}: {uri}")
            known.append(uri)
        addresses[key] = known
    settings: tuple[tuple[dict[str, Any], str, Any], ...] = (
        (addresses, "backchannelLogoutUri", wanted.backchannel),
        (addresses, "backchannelLogoutSessionRequired", True),
        (tokens, "alwaysIssueRefreshToken", True),
    )
    for place, key, value in settings:
        if place.get(key) != value:
            details.append(f"{key}: {value if isinstance(value, str) else 'yes'}")
            place[key] = value
    body: dict[str, Any] = {"oidcClientMetadata": addresses, "customClientMetadata": tokens}
    if application is None:
        body |= {
            "name": wanted.app_name,
            "type": "Traditional",
            "description": "People sign in to Postern with this one.",
        }
        body["customData"] = {_MARK: {"for": wanted.callback, "own": True, "made": sorted(made)}}
        return Step("create", what, tuple(details), "POST", "applications", body, binds=binds)
    what, path = f"application {application['name']}", f"applications/{application['id']}"
    mark = mark_of(application)
    if unnoted := set(made).difference(mark.get("made", ())):
        details.append("a note of what is made with it")
        mark = {**mark, "made": sorted({*mark.get("made", ()), *unnoted})}
        body["customData"] = {**(application.get("customData") or {}), _MARK: mark}
    if not details:
        return Step("keep", what, binds=binds, bound=application["id"])
    return Step("change", what, tuple(details), "PATCH", path, body, binds=binds, bound=application["id"])


def _machine(wanted: Wanted, found: Found) -> Iterator[Step]:
    if not wanted.machine:
        return
    role = next((it for it in found.roles if it["name"] == MANAGEMENT_ROLE), None)
    if role is None:  # a Logto without it is none that this program knows
        return
    machine, name = find_machine(wanted, found), f"{wanted.app_name} setup"
    what, grant = f"application {name}", "its role for the Management API"
    path = f"roles/{role['id']}/applications"
    if machine is None:
        body = {
            "name": name,
            "type": "MachineToMachine",
            "description": "Later runs of `postern logto` use this one.",
            "oidcClientMetadata": {"redirectUris": [], "postLogoutRedirectUris": []},
            "customData": {_MARK: {"for": wanted.callback}},
        }
        yield Step("create", what, ("for later runs",), "POST", "applications", body, binds="machine")
        yield Step("create", grant, (MANAGEMENT_ROLE,), "POST", path, {"applicationIds": ["{machine}"]})
        return
    yield Step("keep", f"application {machine['name']}", binds="machine", bound=machine["id"])
    if machine["id"] not in found.managers:
        yield Step("create", grant, (MANAGEMENT_ROLE,), "POST", path, {"applicationIds": [machine["id"]]})


def _discord(wanted: Wanted, found: Found) -> Iterator[Step]:
    connector = _by(found.connectors, "connectorId", DISCORD)
    if wanted.discord is None:
        if connector is not None:
            yield Step("keep", "Discord connector", binds="connector", bound=connector["id"])
        return
    config = {"clientId": wanted.discord[0], "clientSecret": wanted.discord[1]}
    if connector is None:
        body = {"connectorId": DISCORD, "config": {**config, "scope": "identify email"}, "syncProfile": True}
        details = (f"clientId: {wanted.discord[0]}",)
        yield Step(
            "create",
            "Discord connector",
            details,
            "POST",
            "connectors",
            body,
            binds="connector",
            note=f"connectors:{DISCORD}",
        )
        return
    changed = tuple(name for name, value in config.items() if connector["config"].get(name) != value)
    if not changed:
        yield Step("keep", "Discord connector", binds="connector", bound=connector["id"])
        return
    path, body = f"connectors/{connector['id']}", {"config": {**connector["config"], **config}}
    yield Step("change", "Discord connector", changed, "PATCH", path, body, binds="connector", bound=connector["id"])


def _experience(wanted: Wanted, found: Found) -> Iterator[Step]:
    experience, body, details = found.experience, dict[str, Any](), list[str]()
    there = wanted.discord is not None or _by(found.connectors, "connectorId", DISCORD) is not None
    targets = list(experience.get("socialSignInConnectorTargets", ()))
    if there and "discord" not in targets:
        body["socialSignInConnectorTargets"] = [*targets, "discord"]
        details.append("Discord is offered")
    if wanted.discord_only and there:
        sign_up = {"identifiers": [], "password": False, "verify": False}
        if experience.get("signIn", {}).get("methods"):
            body["signIn"] = {**experience.get("signIn", {}), "methods": []}
            details.append("no sign-in with passwords or codes")
        if any(experience.get("signUp", {}).get(key) != value for key, value in sign_up.items()):
            body["signUp"] = {**experience.get("signUp", {}), **sign_up}
            details.append("no sign-up with passwords or codes")
    if not experience.get("unknownSessionRedirectUrl"):  # somebody else's choice stays
        body["unknownSessionRedirectUrl"] = wanted.home
        details.append(f"unknownSessionRedirectUrl: {wanted.home}")
    what = "sign-in experience"
    yield Step("change", what, tuple(details), "PATCH", "sign-in-exp", body) if body else Step("keep", what)


def _claims(wanted: Wanted, found: Found) -> Step:
    needed = [claim for scope in wanted.scopes for claim in _CLAIMS.get(scope, ())]
    missing = [claim for claim in dict.fromkeys(needed) if claim not in found.claims]
    if not missing:
        return Step("keep", "claims in the ID token")
    body = {"enabledExtendedClaims": [*found.claims, *missing]}
    return Step("change", "claims in the ID token", (", ".join(missing),), "PUT", "configs/id-token", body)


def _hook(wanted: Wanted, found: Found) -> Step:
    hook, what = find_hook(wanted, found), f"webhook to {wanted.hook}"
    if hook is None:
        body = {"name": wanted.app_name, "events": list(EVENTS), "config": {"url": wanted.hook}, "enabled": True}
        return Step("create", what, (f"{len(EVENTS)} events",), "POST", "hooks", body, binds="hook")
    missing = [event for event in EVENTS if event not in hook["events"]]
    details = tuple(missing) if hook["enabled"] else ("enabled", *missing)
    if not details:
        return Step("keep", what, binds="hook", bound=hook["id"])
    body = {"events": [*hook["events"], *missing], "enabled": True}
    return Step("change", what, details, "PATCH", f"hooks/{hook['id']}", body, binds="hook", bound=hook["id"])


def _named(wanted: Wanted, found: Found) -> Iterator[Step]:
    """API resources, roles, an organization: made when they are missing, never changed."""
    for indicator in wanted.resources:
        what, body = f"API resource {indicator}", {"name": indicator, "indicator": indicator}
        yield _missing(found.resources, "indicator", indicator, what, "resources", body)
    for role in wanted.roles:
        body = {"name": role, "description": f"{role} (made by Postern)", "type": "User"}
        yield _missing(found.roles, "name", role, f"role {role}", "roles", body)
    if wanted.organization is not None:
        name = wanted.organization
        yield _missing(found.organizations, "name", name, f"organization {name}", "organizations", {"name": name})


def _missing(things: Sequence[Json], key: str, value: str, what: str, collection: str, body: Json) -> Step:
    if _by(things, key, value) is not None:
        return Step("keep", what)
    return Step("create", what, (), "POST", collection, body, note=f"{collection}:{value}")


def _by(things: Sequence[Json], key: str, value: str) -> Json | None:
    return next((thing for thing in things if thing.get(key) == value), None)
