"""The authorization endpoint of the stand-in Logto: what is checked, in which order, and where it leads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlencode

from starlette.requests import Request
from starlette.responses import Response

from .config import ORGANIZATION_RESOURCE
from .hooks import announce
from .logto_pages import base_url, page
from .oauth import OidcError, body_pairs, redirect, session_not_found, single, token, with_query
from .state import Authorization, AuthRequest, Facts, Grant, Interaction, Logout, SandboxState, Session

SCOPES = (
    "openid",
    "offline_access",
    "profile",
    "email",
    "phone",
    "address",
    "custom_data",
    "identities",
    "roles",
    "urn:logto:scope:organizations",
    "urn:logto:scope:organization_roles",
    "urn:logto:scope:sessions",
    "urn:logto:scope:trusted_devices",
)
_RESPONSE_TYPES = ("code id_token", "code", "id_token", "none")
_PROMPTS = frozenset({"none", "login", "consent"})
_SCREENS = {
    "sign_in": "sign-in",
    "register": "register",
    "reset_password": "reset-password",
    "identifier:sign_in": "identifier-sign-in",
    "identifier:register": "identifier-register",
    "single_sign_on": "single-sign-on",
}


async def authorize(state: SandboxState, request: Request) -> Response:
    """GET or POST /oidc/auth. Errors before the redirect URI is known good are JSON, even to a browser."""
    pairs = await body_pairs(request) if request.method == "POST" else list(request.query_params.multi_items())
    echoed = dict(pairs)
    try:
        pairs = _pushed(state, pairs)
        params = single(pairs)
        _check_application(state, params)
    except OidcError as error:
        more = {"state": echoed["state"]} if echoed.get("state") else {}
        return error.response(state.config.issuer, **more, iss=state.config.issuer)
    try:
        if state.authorize_error is not None:
            raise OidcError(state.authorize_error, "ordered through the control interface")  # noqa: TRY301 -- one exit
        accepted = check(state, params, tuple(value for name, value in pairs if name == "resource"))
        session = state.session_by_cookie(state.signer.get(request, "_session"))
        return proceed(state, request, accepted, session)
    except OidcError as error:
        return deliver_error(state, params, error)


def _pushed(state: SandboxState, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    # RFC 9126: a request_uri stands for what was pushed before.
    uri = dict(pairs).get("request_uri")
    if uri is None:
        return pairs
    expires, pushed = state.pushed.pop(uri, (0.0, []))
    if state.clock.now() >= expires:
        raise OidcError("invalid_request_uri", "request_uri is invalid, expired, or was already used")
    return pushed


def _check_application(state: SandboxState, params: Mapping[str, str]) -> None:
    state.check_client(params.get("client_id"))
    if params.get("redirect_uri") not in state.config.redirect_uris:
        description = "redirect_uri did not match any of the client's registered redirect_uris"
        raise OidcError("invalid_redirect_uri", description)


def check(state: SandboxState, params: Mapping[str, str], resources: tuple[str, ...]) -> AuthRequest:
    """An acceptable request as a value. Unknown scopes are dropped in silence; everything else wrong is an OidcError."""
    if "request" in params:
        raise OidcError("request_not_supported")
    _check_response(params)
    if params.get("code_challenge_method", "S256" if "code_challenge" in params else "") not in ("S256", ""):
        raise OidcError("invalid_request", "not supported value of code_challenge_method")
    prompts = frozenset(params.get("prompt", "").split())
    if prompts - _PROMPTS:
        raise OidcError("invalid_request", "unsupported prompt value requested")
    if "none" in prompts and len(prompts) > 1:
        raise OidcError("invalid_request", "prompt none must only be used alone")
    requested = params.get("scope", "").split()
    if params.get("nonce") and "openid" not in requested:
        raise OidcError("invalid_request", "openid scope must be requested when using the nonce parameter")
    if not params.get("max_age", "0").isdigit():
        raise OidcError("invalid_request", "invalid max_age parameter value")
    known = {*SCOPES}
    for resource in resources:
        known |= _scopes_of_resource(state, resource)
    if "consent" not in prompts:
        known.discard("offline_access")  # recorded: without prompt=consent it is taken out, without a word
    scopes = tuple(dict.fromkeys(scope for scope in requested if scope in known))
    return AuthRequest(dict(params), resources, scopes, prompts)


def _check_response(params: Mapping[str, str]) -> None:
    response_type = params.get("response_type")
    if response_type is None:
        raise OidcError("invalid_request", "missing required parameter 'response_type'")
    if response_type not in _RESPONSE_TYPES:
        raise OidcError("unsupported_response_type", "unsupported response_type requested")
    if response_type != "code":
        raise OidcError("invalid_request", "requested response_type is not allowed for this client")
    if params.get("response_mode", "query") not in ("query", "fragment", "form_post"):
        raise OidcError("unsupported_response_mode", "unsupported response_mode requested")


def _scopes_of_resource(state: SandboxState, resource: str) -> set[str]:
    if resource == ORGANIZATION_RESOURCE:
        return {scope for org in state.config.organizations for scopes in org.role_scopes.values() for scope in scopes}
    if resource not in state.config.resources:
        raise OidcError("invalid_target", "resource indicator is missing, or unknown")
    return set(state.config.resources[resource])


def proceed(
    state: SandboxState,
    request: Request,
    accepted: AuthRequest,
    session: Session | None,
    done: Interaction | None = None,
) -> Response:
    """The next hop: a sign-in page, the consent page, or back to the application with a code.

    `done` is the interaction that has just ended, when there was one.
    """
    if session is not None:  # every visit makes the session last longer
        session.expires_at = state.clock.now() + state.config.lifetimes.session
    try:
        answer = _proceed(state, request, accepted, session, done)
    except OidcError as error:
        answer = deliver_error(state, accepted.params, error)
    if session is not None:
        set_session_cookie(state, request, answer, session)
    return answer


def _proceed(
    state: SandboxState,
    request: Request,
    accepted: AuthRequest,
    session: Session | None,
    done: Interaction | None,
) -> Response:
    logged_in = done is not None and done.logged_in
    if session is None or session.sub is None or (not logged_in and _must_sign_in(state, accepted, session)):
        if "none" in accepted.prompts:
            raise OidcError("login_required", "End-User authentication is required")
        return _interact(state, request, accepted, "login")
    authorization = session.authorizations.get(state.config.client_id)
    if authorization is not None and not state.may_use(state.people[session.sub]):
        raise OidcError("access_denied", "Access denied.")
    if _must_consent(state, accepted, authorization, done):
        if "none" in accepted.prompts:
            raise OidcError("consent_required", "requested scopes not granted")
        return _interact(state, request, accepted, "consent", logged_in=logged_in)
    return _deliver_code(state, request, accepted, session, done)


def _must_sign_in(state: SandboxState, accepted: AuthRequest, session: Session) -> bool:
    max_age = accepted.get("max_age")
    too_old = max_age is not None and state.clock.now() - session.login_at >= int(max_age)
    return "login" in accepted.prompts or too_old


def _must_consent(
    state: SandboxState, accepted: AuthRequest, authorization: Authorization | None, done: Interaction | None
) -> bool:
    if "consent" in accepted.prompts and not (done is not None and done.consented):
        return True
    grant = state.grants.get(authorization.grant_id) if authorization is not None else None
    if grant is None:
        return True
    return not (set(accepted.scopes) <= grant.scopes and set(accepted.resources) <= grant.resources)


# -- on to a page ---------------------------------------------------------------------------------------------------


def _interact(
    state: SandboxState, request: Request, accepted: AuthRequest, prompt: str, *, logged_in: bool = False
) -> Response:
    expires = state.clock.now() + state.config.lifetimes.interaction
    interaction = Interaction(token(), accepted, "consent" if prompt == "consent" else "login", expires)
    interaction.logged_in = logged_in
    state.interactions[interaction.uid] = interaction
    answer = redirect(_page_url(accepted) if prompt == "login" else _consent_url(accepted))
    _set_interaction_cookies(state, request, answer, interaction)
    return answer


def _consent_url(accepted: AuthRequest) -> str:
    return "/consent?" + urlencode({"app_id": accepted.params["client_id"]})


def _page_url(accepted: AuthRequest) -> str:
    # Recorded: a first_screen or interaction_mode that does not exist makes Logto forget the other extras as well.
    query = {"app_id": accepted.params["client_id"]}
    screen, mode = accepted.get("first_screen") or "sign_in", accepted.get("interaction_mode")
    if screen not in _SCREENS or mode not in (None, "signIn", "signUp"):
        return "/sign-in?" + urlencode(query)
    for name in ("organization_id", "login_hint", "identifier", "one_time_token", "ui_locales"):
        if (value := accepted.get(name)) is not None:
            query[name] = value
    if mode == "signUp":
        screen = "register"
    if (direct := accepted.get("direct_sign_in")) is not None:
        path = "/".join(quote(part, safe="") for part in direct.split(":", 1))
        return f"/direct/{path}?" + urlencode(query | {"fallback": _SCREENS[screen]})
    return f"/{_SCREENS[screen]}?" + urlencode(query)


# -- back to the application ----------------------------------------------------------------------------------------


def _deliver_code(
    state: SandboxState, request: Request, accepted: AuthRequest, session: Session, done: Interaction | None
) -> Response:
    authorization = session.authorizations[state.config.client_id]
    offline = "offline_access" in accepted.scopes
    authorization.persists = authorization.persists or offline
    facts = Facts(
        sub=session.sub or "",
        grant_id=authorization.grant_id,
        session_uid=session.uid,
        with_session=not offline,
        scopes=accepted.scopes,
        resources=accepted.resources,
        sid=authorization.sid,
        nonce=accepted.get("nonce"),
        auth_time=int(session.login_at) if accepted.get("max_age") is not None else None,
    )
    code = state.issue("code", facts, accepted.scopes, request=accepted)
    answer = _deliver(state, accepted.params, [("code", code.value)])
    if done is not None:
        path = f"/oidc/auth/{done.uid}"
        state.signer.set(answer, "_interaction_resume", "", path=path, expires=0, secure=is_secure(state, request))
    return answer


def deliver_error(state: SandboxState, params: Mapping[str, str], error: OidcError) -> Response:
    """An error taken back to the application's redirect URI."""
    pairs = [("error", error.error)]
    if error.description:
        pairs.append(("error_description", error.description))
    return _deliver(state, params, pairs, error=True)


def _deliver(
    state: SandboxState,
    params: Mapping[str, str],
    pairs: list[tuple[str, str]],
    *,
    error: bool = False,
) -> Response:
    if params.get("state"):
        pairs.append(("state", "another-state" if "callback_foreign_state" in state.lies else params["state"]))
    if "callback_foreign_iss" in state.lies:
        pairs.append(("iss", "https://other.example.test/oidc"))
    elif "callback_no_iss" not in state.lies:
        pairs.append(("iss", state.config.issuer))
    uri = params["redirect_uri"]
    mode = params.get("response_mode") or ("query" if params.get("response_type") == "code" else "fragment")
    if mode == "form_post":  # recorded: with an error the page has status 400
        answer = page("form_post", 400 if error else 200, form_action=None, action=uri, fields=pairs)
        answer.headers["cache-control"] = "no-store"
        return answer
    return redirect(with_query(uri, pairs, fragment=mode == "fragment"))


# -- coming back from a page ----------------------------------------------------------------------------------------


async def resume(state: SandboxState, request: Request) -> Response:
    """GET /oidc/auth/{uid}: what the page decided takes effect."""
    uid = request.path_params["uid"]
    interaction = state.interactions.get(uid)
    known = state.signer.get(request, "_interaction_resume") == uid
    if interaction is None or not known or state.clock.now() >= interaction.expires_at:
        error = session_not_found("authorization request has expired")
        return error.response(state.config.issuer, iss=state.config.issuer)
    session = state.session_by_cookie(state.signer.get(request, "_session"))
    if interaction.sub is not None:
        if session is not None and session.sub not in (None, interaction.sub):
            return _switch_person(state, request, session, uid)
        session = _sign_in(state, session, interaction)
    elif interaction.consented and session is not None and session.sub is not None:
        _consent(state, session, interaction.request)
    else:  # the page has decided nothing yet
        page_of = _page_url if interaction.prompt == "login" else _consent_url
        return redirect(page_of(interaction.request))
    del state.interactions[uid]
    session.cookie = token()  # a new value at every change of rights, against fixation
    return proceed(state, request, interaction.request, session, interaction)


def _sign_in(state: SandboxState, session: Session | None, interaction: Interaction) -> Session:
    session = session or state.new_session()
    session.sub, session.login_at = interaction.sub, state.clock.now()
    interaction.logged_in = True
    announce(
        state,
        "PostSignIn",
        {
            "interactionEvent": "SignIn",
            "sessionId": session.uid,
            "userId": session.sub,
            "userIp": "127.0.0.1",
            "user": {"id": session.sub},
            "application": {"id": state.config.client_id, "type": "Traditional", "name": "postern"},
        },
    )
    state.people[interaction.sub or ""].updated_at = int(state.clock.now() * 1000)
    return session


def _consent(state: SandboxState, session: Session, accepted: AuthRequest) -> None:
    authorization = session.authorizations.get(state.config.client_id)
    grant = state.grants.get(authorization.grant_id) if authorization is not None else None
    if grant is None:
        grant = Grant(token(), session.sub or "")
        state.grants[grant.id] = grant
    if authorization is None or authorization.grant_id != grant.id:
        session.authorizations[state.config.client_id] = Authorization(token(), grant.id)
    grant.scopes |= set(accepted.scopes)
    grant.resources |= set(accepted.resources)


def _switch_person(state: SandboxState, request: Request, session: Session, uid: str) -> Response:
    # Recorded: somebody else signs in over a living session, which is therefore ended first, with back-channel logout.
    session.logout = Logout(token(), state.config.client_id, None, None, resume=uid)
    action = base_url(state.config, request) + "/oidc/session/end/confirm"
    answer = page("logout", action=action, xsrf=session.logout.xsrf, confirm=True, heading="Changing the account")
    answer.headers["cache-control"] = "no-store"
    set_session_cookie(state, request, answer, session)
    return answer


# -- cookies --------------------------------------------------------------------------------------------------------


def is_secure(state: SandboxState, request: Request) -> bool:
    """Whether cookies carry Secure."""
    return base_url(state.config, request).startswith("https:")


def set_session_cookie(state: SandboxState, request: Request, answer: Response, session: Session) -> None:
    """The `_session` cookie, for another fourteen days."""
    secure = is_secure(state, request)
    state.signer.set(answer, "_session", session.cookie, expires=session.expires_at, secure=secure)


def interaction_of(state: SandboxState, request: Request, app_id: str | None = None) -> Interaction | None:
    """The interaction a page of this browser belongs to.

    There is one per application in the cookie, not one per tab: whichever tab finishes, finishes the one that started
    last. That is how the recorded Logto behaves, and why a relying party must keep several states.
    """
    raw = state.signer.get(request, "_interaction")
    try:
        uids = json.loads(unquote(raw)) if raw else {}
    except ValueError:  # pragma: no cover -- the signature holds, so it is ours
        return None
    interaction = state.interactions.get(uids.get(app_id) or uids.get("_legacy") or "")
    if interaction is None or state.clock.now() >= interaction.expires_at:
        return None
    return interaction


def _set_interaction_cookies(state: SandboxState, request: Request, answer: Response, interaction: Interaction) -> None:
    client_id = interaction.request.params["client_id"]
    secure, set_cookie = is_secure(state, request), state.signer.set
    facts = {"appId": client_id}
    if (organization := interaction.request.get("organization_id")) is not None:
        facts["organizationId"] = organization
    # Raw JSON in a cookie, as recorded: it breaks parsers that expect tokens, and on localhost every port gets to see it.
    set_cookie(answer, "_logto", json.dumps(facts, separators=(",", ":")), http_only=False, secure=secure)
    uids = json.dumps({client_id: interaction.uid, "_legacy": interaction.uid}, separators=(",", ":"))
    set_cookie(answer, "_interaction", quote(uids, safe=""), expires=interaction.expires_at, secure=secure)
    path = f"/oidc/auth/{interaction.uid}"
    set_cookie(answer, "_interaction_resume", interaction.uid, path=path, expires=interaction.expires_at, secure=secure)
