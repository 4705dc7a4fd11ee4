"""The token endpoint of the stand-in Logto, and the tokens it makes."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .config import ORGANIZATION_RESOURCE
from .management import is_machine, machine_token
from .oauth import OidcError, basic_credentials, body_pairs, invalid_grant, json_response, single, token
from .people import EXTENDED_CLAIMS, Person
from .state import Facts, SandboxState, Ticket

_ORGANIZATION_SCOPE = "urn:logto:scope:organizations"
# The provider knows these grants; this kind of application may not use them.
_OTHER_GRANTS = frozenset(
    {
        "implicit",
        "client_credentials",
        "urn:ietf:params:oauth:grant-type:device_code",
        "urn:ietf:params:oauth:grant-type:token-exchange",
    }
)


async def token_endpoint(state: SandboxState, request: Request) -> Response:
    """POST /oidc/token."""
    try:
        pairs = await body_pairs(request)
        params = single(pairs)
        client_id, secret = _credentials(request, params)
        resource = next((value for name, value in pairs if name == "resource"), None)
        if params.get("grant_type") == "client_credentials" and is_machine(state, request, client_id, secret):
            body = machine_token(state, client_id, resource)
        else:
            authenticate(state, request, params)
            body = _exchange(state, params, resource)
    except OidcError as error:
        return error.response(state.config.issuer)
    return json_response(body, headers={"cache-control": "no-store"})


def authenticate(state: SandboxState, request: Request, params: Mapping[str, str]) -> None:
    """Check the client's secret, from Basic or the body. OidcError: 400 for an unknown client, 401 for a bad secret."""
    basic = basic_credentials(request.headers.get("authorization", ""))
    client_id, secret = _credentials(request, params)
    if not client_id:
        raise OidcError("invalid_request", "no client authentication mechanism provided")
    state.check_client(client_id)
    if secret is None or not hmac.compare_digest(secret.encode(), state.config.client_secret.encode()):
        challenge = "Basic" if basic else None
        raise OidcError("invalid_client", "client authentication failed", status=401, challenge=challenge)
    if state.config.secret_expired:
        raise OidcError("invalid_request", "client secret has expired")


def _credentials(request: Request, params: Mapping[str, str]) -> tuple[str, str | None]:
    basic = basic_credentials(request.headers.get("authorization", ""))
    return basic or (params.get("client_id", ""), params.get("client_secret"))


def require(params: Mapping[str, str], *names: str) -> None:
    """OidcError when a parameter is missing or empty."""
    missing = [f"'{name}'" for name in names if not params.get(name)]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise OidcError("invalid_request", f"missing required parameter{plural} {' and '.join(missing)}")


def _exchange(state: SandboxState, params: Mapping[str, str], resource: str | None) -> dict[str, Any]:
    require(params, "grant_type")
    grant_type = params["grant_type"]
    if grant_type == "authorization_code":
        return _by_code(state, params, resource)
    if grant_type == "refresh_token":
        return _by_refresh_token(state, params, resource)
    if grant_type in _OTHER_GRANTS:
        raise OidcError("invalid_request", "requested grant type is not allowed for this client")
    raise OidcError("unsupported_grant_type", "unsupported grant_type requested")


def _by_code(state: SandboxState, params: Mapping[str, str], resource: str | None) -> dict[str, Any]:
    require(params, "code", "redirect_uri")
    code = state.find(params["code"], "code")
    asked = code.request
    if asked is None or params["redirect_uri"] != asked.params["redirect_uri"]:
        raise invalid_grant()
    _check_verifier(asked.get("code_challenge"), params.get("code_verifier"))
    if code.consumed_at is not None:
        # A code that comes back has leaked: everything that it gave dies (RFC 6749 4.1.2). Only after the verifier is
        # right: a stranger without it must not be able to end the session.
        state.revoke_grant(code.facts.grant_id)
        raise invalid_grant()
    _check_resource(code.facts, resource)
    code.consumed_at = state.clock.now()
    refresh = None
    if "offline_access" in code.scopes or state.config.always_issue_refresh_token:
        refresh = state.issue("refresh", code.facts, code.scopes)
    return _answer(state, code.facts, code.scopes, resource, refresh)


def _check_verifier(challenge: str | None, verifier: str | None) -> None:
    # A wrong verifier does not use the code up. One without a challenge is refused as well: a downgrade (RFC 9700 2.1.1).
    if challenge is None and not verifier:
        return
    digest = hashlib.sha256((verifier or "").encode()).digest()
    expected = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    if challenge is None or not verifier or not hmac.compare_digest(expected.encode(), challenge.encode()):
        raise invalid_grant()


def _check_resource(facts: Facts, resource: str | None) -> None:
    if resource is not None and resource not in facts.resources:
        raise OidcError("invalid_target", "resource indicator is missing, or unknown")


def _by_refresh_token(state: SandboxState, params: Mapping[str, str], resource: str | None) -> dict[str, Any]:
    require(params, "refresh_token")
    ticket = state.find(params["refresh_token"], "refresh")
    now, lifetimes = state.clock.now(), state.config.lifetimes
    if ticket.consumed_at is not None and now - ticket.consumed_at > lifetimes.replay:
        state.revoke_grant(ticket.facts.grant_id)
        raise invalid_grant()
    scopes = _narrowed(ticket, params.get("scope"))
    person = state.people[ticket.facts.sub]
    if not state.may_use(person):  # the token survives: with access again, it works again
        raise OidcError("access_denied", "Access denied.")
    _check_resource(ticket.facts, resource)
    organization = params.get("organization_id")
    if organization is not None:
        _check_organization(ticket, person, organization)
    age = (now - ticket.issued_at) / (ticket.expires_at - ticket.issued_at)
    if age >= lifetimes.rotate_after or ticket.consumed_at is not None:
        ticket.consumed_at = ticket.consumed_at if ticket.consumed_at is not None else now
        ticket = state.issue("refresh", ticket.facts, ticket.scopes)
    return _answer(state, ticket.facts, scopes, resource, ticket, organization)


def _narrowed(ticket: Ticket, wanted: str | None) -> tuple[str, ...]:
    if not wanted:
        return ticket.scopes
    scopes = tuple(dict.fromkeys(wanted.split()))
    if wider := [scope for scope in scopes if scope not in ticket.scopes]:
        raise OidcError("invalid_scope", "refresh token missing requested scope", extra={"scope": " ".join(wider)})
    return scopes


def _check_organization(ticket: Ticket, person: Person, organization: str) -> None:
    if _ORGANIZATION_SCOPE not in ticket.scopes:
        raise OidcError(
            "insufficient_scope",
            "refresh token missing required scope",
            status=403,
            extra={"scope": _ORGANIZATION_SCOPE},
        )
    if organization not in person.organization_roles:
        raise OidcError("access_denied", "user is not a member of the organization", status=403)


# -- what comes out ---------------------------------------------------------------------------------------------------


def _answer(
    state: SandboxState,
    facts: Facts,
    scopes: tuple[str, ...],
    resource: str | None,
    refresh: Ticket | None,
    organization: str | None = None,
) -> dict[str, Any]:
    if resource is None and organization is None:
        named = tuple(scope for scope in scopes if not _belongs_to_resource(state, facts, scope))
        access, scope = state.issue("access", facts, named).value, " ".join(named)
    else:
        access, scope = _api_token(state, facts, scopes, resource, organization)
    body: dict[str, Any] = {"access_token": access, "expires_in": int(state.config.lifetimes.access)}
    if "openid" in scopes and "no_id_token" not in state.lies:
        body["id_token"] = id_token(state, facts, scopes)
    if refresh is not None:
        body["refresh_token"] = refresh.value
    return body | {"scope": scope, "token_type": "Bearer"}


def _belongs_to_resource(state: SandboxState, facts: Facts, scope: str) -> bool:
    return any(scope in state.config.resources.get(resource, ()) for resource in facts.resources) or (
        ORGANIZATION_RESOURCE in facts.resources
        and any(scope in given for org in state.config.organizations for given in org.role_scopes.values())
    )


def _api_token(
    state: SandboxState, facts: Facts, scopes: tuple[str, ...], resource: str | None, organization: str | None
) -> tuple[str, str]:
    """A JWT for an API resource, an organization, or a resource within an organization; and its scope.

    Somebody whose roles grant nothing gets one with an empty scope, not an error, as recorded.
    """
    person = state.people[facts.sub]
    granted: set[str] = set()
    if resource is not None:
        given = state.config.resources.get(resource, {})
        granted = {scope for scope, roles in given.items() if set(roles) & set(person.roles)}
    elif ORGANIZATION_RESOURCE in facts.resources:
        granted = _organization_scopes(state, person, organization or "")
    scope = " ".join(name for name in scopes if name in granted)
    now = int(state.clock.now())
    claims: dict[str, Any] = {"organization_id": organization} if organization and resource else {}
    claims |= {
        "jti": token(),
        "sub": facts.sub,
        "iat": now,
        "exp": now + int(state.config.lifetimes.access),
        "scope": scope,
        "client_id": state.config.client_id,
        "iss": state.config.issuer,
        "aud": resource or f"urn:logto:organization:{organization}",
    }
    return state.keys.sign(claims, typ="at+jwt"), scope


def _organization_scopes(state: SandboxState, person: Person, organization: str) -> set[str]:
    found = next((entry for entry in state.config.organizations if entry.id == organization), None)
    if found is None:
        return set()
    return {scope for role in person.organization_roles[organization] for scope in found.role_scopes.get(role, ())}


def id_token(state: SandboxState, facts: Facts, scopes: tuple[str, ...]) -> str:
    """The ID token: current claims, the sign-in's nonce, `sid` and `auth_time` where they belong; or a lie about them."""
    left_out = EXTENDED_CLAIMS - state.config.id_token_claims
    person = state.people[facts.sub]
    claims = {
        name: value for name, value in person.claims(scopes, state.config.organizations).items() if name not in left_out
    }
    now = int(state.clock.now())
    if facts.auth_time is not None:
        claims["auth_time"] = facts.auth_time
    if facts.nonce is not None:
        claims["nonce"] = facts.nonce
    if state.says_sid():
        claims["sid"] = facts.sid
    claims |= {
        "aud": state.config.client_id,
        "exp": now + int(state.config.lifetimes.id_token),
        "iat": now,
        "iss": state.config.issuer,
    }
    return state.keys.sign_lying(_lied(claims, state.lies), state.lies, state.config.client_secret)


def _lied(claims: dict[str, Any], lies: frozenset[str]) -> dict[str, Any]:
    changes: Mapping[str, Mapping[str, Any]] = {
        "wrong_iss": {"iss": "https://other.example.test/oidc"},
        "wrong_aud": {"aud": "another-application"},
        "many_aud": {"aud": [claims["aud"], "another-application"]},
        "wrong_azp": {"azp": "another-application"},
        "wrong_nonce": {"nonce": "another-nonce"},
        "other_sub": {"sub": "oth000000009"},
        "expired": {"iat": claims["iat"] - 7200, "exp": claims["iat"] - 3600},
        "issued_in_future": {"iat": claims["iat"] + 3600, "exp": claims["exp"] + 3600},
    }
    for lie in lies & changes.keys():
        claims |= changes[lie]
    for lie in lies & {"no_sub", "no_iat", "no_exp", "no_iss", "no_aud", "no_nonce"}:
        claims.pop(lie.removeprefix("no_"), None)
    return claims
