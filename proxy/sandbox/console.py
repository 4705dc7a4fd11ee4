"""What the console of the stand-in Logto holds: applications, connectors, roles, webhooks, the sign-in experience.

JSON objects as the Management API shows them, in the recorded shapes. Signing in itself is told by `SandboxConfig`: the
"Traditional" application that was made or changed last is the one that people sign in to.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .config import SANDBOX_WEBHOOK_KEY, SandboxConfig

Json = dict[str, Any]

MANAGEMENT_ROLE = "Logto Management API access"
EVENTS = (
    *("PostSignIn", "User.Deleted", "User.Data.Updated", "User.SuspensionStatus.Updated"),
    "Organization.Membership.Updated",
)
_ALPHABET = string.ascii_lowercase + string.digits
_NO_ADDRESSES: Mapping[str, list[str]] = {"redirectUris": [], "postLogoutRedirectUris": []}


def new_id(length: int = 21) -> str:
    """An id as Logto makes them: 21 characters for most things, 12 for people, connectors and organizations."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _sign_in_experience() -> Json:
    return {
        "tenantId": "default",
        "id": "default",
        "signIn": {
            "methods": [
                {"identifier": "username", "password": True, "verificationCode": False, "isPasswordPrimary": True}
            ]
        },
        "signUp": {"identifiers": ["username"], "password": True, "verify": False},
        "socialSignIn": {},
        "socialSignInConnectorTargets": [],
        "signInMode": "SignInAndRegister",
        "customCss": None,
        "singleSignOnEnabled": False,
        "unknownSessionRedirectUrl": None,
    }


@dataclass(slots=True)
class Console:
    """Everything by id. `assigned`: role -> machine-to-machine applications that have it."""

    applications: dict[str, Json] = field(default_factory=dict)
    secrets: dict[str, list[Json]] = field(default_factory=dict, repr=False)
    connectors: dict[str, Json] = field(default_factory=dict)
    hooks: dict[str, Json] = field(default_factory=dict, repr=False)
    roles: dict[str, Json] = field(default_factory=dict)
    assigned: dict[str, set[str]] = field(default_factory=dict)
    resources: dict[str, Json] = field(default_factory=dict)
    organizations: dict[str, Json] = field(default_factory=dict)
    sign_in_experience: Json = field(default_factory=_sign_in_experience)
    id_token_claims: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: SandboxConfig, role_names: Iterable[str]) -> Console:
        """The console of a Logto that is set up as `config` says; an empty client id stands for no application yet."""
        console = cls(id_token_claims=sorted(config.id_token_claims))
        console.add_role({"name": MANAGEMENT_ROLE, "type": "MachineToMachine"})
        for name in role_names:
            console.add_role({"name": name, "type": "User"})
        for organization in config.organizations:
            shown = {"tenantId": "default", "id": organization.id, "name": organization.name, "customData": {}}
            console.organizations[organization.id] = shown | {"description": organization.description}
        if config.client_id:
            addresses = {
                "redirectUris": list(config.redirect_uris),
                "postLogoutRedirectUris": list(config.post_logout_redirect_uris),
            }
            console.applications[config.client_id] = _application(config.client_id, "postern", "Traditional", addresses)
            console.secrets[config.client_id] = [_secret(config.client_id, config.client_secret)]
        if config.hook_url:
            body = {"name": "postern", "events": EVENTS, "config": {"url": config.hook_url}}
            console.add_hook(body, SANDBOX_WEBHOOK_KEY)
        return console

    def add_hook(self, body: Mapping[str, Any], key: str) -> Json:
        """A new webhook, signed with `key`. Nothing keeps two from going to the same place."""
        made = {
            "tenantId": "default",
            "id": new_id(),
            "name": body["name"],
            "event": None,
            "events": list(body["events"]),
        }
        made |= {"config": {"url": body["config"]["url"], **body["config"]}, "signingKey": key}
        self.hooks[made["id"]] = made | {"enabled": body.get("enabled", True), "createdAt": 1_795_212_865_363}
        return self.hooks[made["id"]]

    def add_application(self, body: Mapping[str, Any]) -> Json:
        """A new application. Nothing keeps two from having the same name and addresses, and `id` in the body is ignored."""
        made = _application(new_id(), str(body["name"]), str(body["type"]), body.get("oidcClientMetadata", {}))
        made |= {name: body[name] for name in ("description", "customClientMetadata", "customData") if name in body}
        self.applications[made["id"]] = made
        self.secrets[made["id"]] = [_secret(made["id"], secrets.token_urlsafe(24))]
        return made

    def add_role(self, body: Mapping[str, Any]) -> Json:
        """A new role."""
        role = {"tenantId": "default", "id": new_id(), "name": body["name"], "description": body.get("description", "")}
        self.roles[role["id"]] = role | {"type": body.get("type", "User"), "isDefault": False}
        return self.roles[role["id"]]

    def secret_of(self, client_id: str) -> str | None:
        """The secret of an application."""
        found = self.secrets.get(client_id)
        return str(found[0]["value"]) if found else None

    def manages(self, client_id: str) -> bool:
        """Whether a machine-to-machine application may use the Management API."""
        return any(
            role["name"] == MANAGEMENT_ROLE and client_id in self.assigned.get(role["id"], ())
            for role in self.roles.values()
        )

    def signs_in(self, config: SandboxConfig, application: Json) -> SandboxConfig:
        """`config` with `application` as the one that people sign in to."""
        addresses, more = application["oidcClientMetadata"], application["customClientMetadata"]
        return replace(
            config,
            client_id=application["id"],
            client_secret=self.secret_of(application["id"]) or "",
            redirect_uris=tuple(addresses["redirectUris"]),
            post_logout_redirect_uris=tuple(addresses["postLogoutRedirectUris"]),
            backchannel_logout_uri=addresses.get("backchannelLogoutUri"),
            backchannel_logout_session_required=addresses.get("backchannelLogoutSessionRequired") is True,
            always_issue_refresh_token=more.get("alwaysIssueRefreshToken") is True,
            app_deleted=False,
        )


def _application(client_id: str, name: str, kind: str, addresses: Mapping[str, Any]) -> Json:
    return {
        "tenantId": "default",
        "id": client_id,
        "name": name,
        "description": None,
        "type": kind,
        "oidcClientMetadata": dict(_NO_ADDRESSES) | dict(addresses),
        "customClientMetadata": {},
        "protectedAppMetadata": None,
        "customData": {},
        "isThirdParty": False,
        "appLevelAccessControlEnabled": False,
        "createdAt": 1_795_212_865_041,
    }


def _secret(client_id: str, value: str) -> Json:
    return {
        "tenantId": "default",
        "applicationId": client_id,
        "name": "Default secret",
        "value": value,
        "createdAt": 1_795_212_865_044,
        "expiresAt": None,
    }
