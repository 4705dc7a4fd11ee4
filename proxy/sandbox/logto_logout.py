"""end_session of the stand-in Logto, and the back-channel logout it sends before the browser goes on."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping

import httpx2
import jwt
from starlette.requests import Request
from starlette.responses import Response

from .hooks import trusted
from .logto_authorize import is_secure, set_session_cookie
from .logto_pages import base_url, notice, page
from .oauth import OidcError, body_pairs, redirect, single, token, with_query
from .state import Authorization, Logout, SandboxState, Session

_LOGGER = logging.getLogger("postern.sandbox")
_BACKCHANNEL_EVENT = "http://schemas.openid.net/event/backchannel-logout"
_BACKCHANNEL_TIMEOUT = 2.5  # seconds, as recorded: a receiver that hangs delays the logout this much, no more


async def end_session(state: SandboxState, request: Request) -> Response:
    """GET or POST /oidc/session/end: a page that submits itself to the confirmation."""
    pairs = await body_pairs(request) if request.method == "POST" else list(request.query_params.multi_items())
    session = state.session_by_cookie(state.signer.get(request, "_session"))
    signed_in = session is not None and session.sub is not None
    session = session or state.new_session()
    try:
        session.logout = _checked(state, single(pairs))
    except OidcError as error:
        answer = error.response(state.config.issuer)
    else:
        action = base_url(state.config, request) + "/oidc/session/end/confirm"
        # No form-action here: browsers apply it to every redirect that follows a form, and where the application sends
        # people after its own signed-out page cannot be known.
        answer = page(
            "logout",
            form_action=None,
            action=action,
            xsrf=session.logout.xsrf,
            confirm=signed_in,
            heading="Signing out",
        )
        answer.headers["cache-control"] = "no-store"
    set_session_cookie(state, request, answer, session)
    return answer


def _checked(state: SandboxState, params: Mapping[str, str]) -> Logout:
    client_id = params.get("client_id") or None
    if hint := params.get("id_token_hint"):
        audience = _audience(state, hint)
        if client_id is not None and client_id != audience:
            raise OidcError("invalid_request", "client_id does not match the provided id_token_hint")
        client_id = audience
    uri = params.get("post_logout_redirect_uri") or None
    if client_id is not None:
        state.check_client(client_id)
        if uri is not None and uri not in state.config.post_logout_redirect_uris:
            raise OidcError("invalid_request", "post_logout_redirect_uri not registered")
    else:
        uri = None  # recorded: without knowing the application the URI is not even looked at
    return Logout(secrets.token_hex(24), client_id, uri, params.get("state"))


def _audience(state: SandboxState, hint: str) -> str:
    try:
        jwt.decode(hint, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise OidcError("invalid_request", "could not decode id_token_hint") from error
    try:
        return str(state.keys.verify(hint, state.config.issuer)["aud"])
    except (jwt.PyJWTError, KeyError) as error:  # among them: signed by a key that two rotations dropped
        raise OidcError("invalid_request", "could not validate id_token_hint") from error


async def confirm(state: SandboxState, request: Request) -> Response:
    """POST /oidc/session/end/confirm: with `logout` the session ends, without it only this application's part of it."""
    session = state.session_by_cookie(state.signer.get(request, "_session"))
    try:
        if session is None or session.logout is None:
            raise OidcError("invalid_request", "could not find logout details")  # noqa: TRY301 -- one exit
        form = single(await body_pairs(request))
        if not secrets.compare_digest(form.get("xsrf", "").encode(), session.logout.xsrf.encode()):
            raise OidcError("invalid_request", "xsrf token invalid")  # noqa: TRY301 -- one exit
    except OidcError as error:
        return error.response(state.config.issuer)
    logout, session.logout = session.logout, None
    authorization = session.authorizations.get(state.config.client_id)
    if authorization is not None and session.sub is not None:
        await _announce(state, session, authorization)
    everything = "logout" in form
    if everything:
        state.end_session(session)
    elif authorization is not None:
        del session.authorizations[state.config.client_id]
        if not authorization.persists:
            state.revoke_grant(authorization.grant_id)
    answer = redirect(_onward(state, request, logout))
    if everything:
        state.signer.set(answer, "_session", "", expires=0, secure=is_secure(state, request))
    else:
        session.cookie = token()
        set_session_cookie(state, request, answer, session)
    return answer


def _onward(state: SandboxState, request: Request, logout: Logout) -> str:
    base = base_url(state.config, request)
    if logout.resume is not None:
        return f"{base}/oidc/auth/{logout.resume}"
    if logout.redirect_uri is None:
        return base + "/oidc/session/end/success"
    if not logout.state:
        return logout.redirect_uri
    return with_query(logout.redirect_uri, [("state", logout.state)])


async def success(_state: SandboxState, _request: Request) -> Response:
    """GET /oidc/session/end/success: where a logout without an address ends."""
    answer = notice("Signed out", "You are signed out of the stand-in Logto.", mood="success")
    answer.headers["cache-control"] = "no-store"
    return answer


async def _announce(state: SandboxState, session: Session, authorization: Authorization) -> None:
    """OpenID Connect Back-Channel Logout 1.0, once, before the redirect; what the receiver answers changes nothing."""
    uri = state.config.backchannel_logout_uri
    if uri is None:
        return
    now = int(state.clock.now())
    claims: dict[str, object] = {"sub": session.sub, "events": {_BACKCHANNEL_EVENT: {}}, "jti": token()}
    if state.says_sid():
        claims["sid"] = authorization.sid
    claims |= {"aud": state.config.client_id, "exp": now + 120, "iat": now, "iss": state.config.issuer}
    form = {"logout_token": state.keys.sign(claims, typ="logout+jwt")}
    try:
        async with httpx2.AsyncClient(timeout=_BACKCHANNEL_TIMEOUT, trust_env=False, verify=trusted()) as client:
            await client.post(uri, data=form, headers={"user-agent": ""})
    except httpx2.HTTPError as error:
        _LOGGER.info("back-channel logout was not delivered: %s", type(error).__name__)
