"""userinfo, introspection and revocation of the stand-in Logto."""

from __future__ import annotations

import contextlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .logto_tokens import authenticate, require
from .oauth import OidcError, body_pairs, json_response, single
from .state import SandboxState, Ticket


async def userinfo(state: SandboxState, request: Request) -> Response:
    """GET or POST /oidc/me: current claims by the scopes of an opaque access token."""
    try:
        ticket = _bearer(state, request)
    except OidcError as error:
        return error.response(state.config.issuer)
    claims: dict[str, Any] = state.people[ticket.facts.sub].claims(ticket.scopes, state.config.organizations)
    if "userinfo_other_sub" in state.lies:
        claims["sub"] = "oth000000009"
    return json_response(claims, headers={"cache-control": "no-store"})


def _bearer(state: SandboxState, request: Request) -> Ticket:
    header = request.headers.get("authorization")
    if header is None:
        raise OidcError("invalid_token", "no access token provided", status=401, challenge="Bearer", bare=True)
    scheme, _, value = header.partition(" ")
    if scheme.lower() != "bearer":
        raise OidcError("invalid_request", "authorization header scheme must be `Bearer`", challenge="Bearer")
    try:
        ticket = state.find(value, "access")
    except OidcError as error:  # also a JWT: Logto's userinfo knows opaque tokens only
        description = "invalid token provided"
        raise OidcError("invalid_token", description, status=401, challenge="Bearer") from error
    try:
        state.check_client(state.config.client_id)
    except OidcError as error:
        error.challenge = "Bearer"
        raise
    if "openid" not in ticket.scopes:
        description = "access token missing openid scope"
        extra = {"scope": "openid"}
        raise OidcError("insufficient_scope", description, status=403, challenge="Bearer", extra=extra)
    return ticket


async def introspection(state: SandboxState, request: Request) -> Response:
    """POST /oidc/token/introspection (RFC 7662): opaque tokens only."""
    try:
        value = await _posted_token(state, request, "introspected via the introspection_endpoint")
    except OidcError as error:
        return error.response(state.config.issuer)
    ticket = _living(state, value)
    if ticket is None:
        return json_response({"active": False}, headers={"cache-control": "no-store"})
    body: dict[str, Any] = {
        "active": True,
        "sub": ticket.facts.sub,
        "client_id": state.config.client_id,
        "exp": int(ticket.expires_at),
        "iat": int(ticket.issued_at),
    }
    if state.says_sid():
        body["sid"] = ticket.facts.sid
    body |= {"iss": state.config.issuer, "scope": " ".join(ticket.scopes)}
    if ticket.kind == "access":
        body["token_type"] = "Bearer"  # noqa: S105 -- RFC 6750's name, not a secret
    return json_response(body, headers={"cache-control": "no-store"})


async def revocation(state: SandboxState, request: Request) -> Response:
    """POST /oidc/token/revocation (RFC 7009): 200 and nothing, for unknown tokens too; takes the whole grant along."""
    try:
        value = await _posted_token(state, request, "revoked via the revocation_endpoint")
    except OidcError as error:
        return error.response(state.config.issuer)
    ticket = _living(state, value)
    if ticket is not None:
        state.revoke_grant(ticket.facts.grant_id)
    return Response("", media_type="text/plain")


async def _posted_token(state: SandboxState, request: Request, cannot: str) -> str:
    params = single(await body_pairs(request))
    authenticate(state, request, params)
    require(params, "token")
    if params["token"].count(".") == 2:
        raise OidcError("unsupported_token_type", f"Structured JWT Tokens cannot be {cannot}")
    return params["token"]


def _living(state: SandboxState, value: str) -> Ticket | None:
    with contextlib.suppress(OidcError):
        return state.find(value, "access")
    with contextlib.suppress(OidcError):
        return state.find(value, "refresh")
    return None
