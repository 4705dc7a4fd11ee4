"""The stand-in Logto: a Starlette app that behaves over HTTP as a recorded Logto 1.42 does, where a relying party can tell.

For development and tests only: it knows no passwords, its people are made up, and whoever asks may be anybody.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import logto_interaction as interaction
from .config import SandboxConfig
from .faults import Misbehaviour
from .logto_authorize import SCOPES, authorize, resume
from .logto_control import control_routes
from .logto_logout import confirm, end_session, success
from .logto_pages import STATIC, base_url, page
from .logto_tokens import authenticate, token_endpoint
from .logto_userinfo import introspection, revocation, userinfo
from .management import management_routes
from .management_page import page_routes
from .management_people import PEOPLE_HANDLERS
from .oauth import OidcError, body_pairs, json_response, single, token
from .state import SandboxState

Endpoint = Callable[[SandboxState, Request], Awaitable[Response]]

_CLAIMS = (
    "sub name family_name given_name middle_name nickname preferred_username profile picture website gender birthdate "
    "zoneinfo locale updated_at username created_at email email_verified phone_number phone_number_verified address "
    "custom_data identities sso_identities roles organizations organization_data organization_roles sid auth_time iss"
)


def create_logto(config: SandboxConfig | None = None) -> Starlette:
    """The app; its memory is `app.state.sandbox`, a SandboxState, for tests in the same process to look at and change."""
    state = SandboxState(config or SandboxConfig())
    app = Starlette(
        routes=_routes(state),
        middleware=[
            Middleware(GZipMiddleware, minimum_size=1024),  # recorded: discovery and tokens come compressed
            Middleware(_Helmet),
            Middleware(Misbehaviour, state=state),
        ],
        exception_handlers={404: _not_found, 405: _not_found},
    )
    app.state.sandbox = state
    return app


def _routes(state: SandboxState) -> Sequence[BaseRoute]:
    def at(path: str, endpoint: Endpoint, *methods: str) -> Route:
        async def call(request: Request) -> Response:
            return await endpoint(state, request)

        return Route(path, call, methods=list(methods or ("GET",)))

    screens = ("sign-in", "register", "reset-password", "identifier-sign-in", "identifier-register", "single-sign-on")
    return [
        at("/oidc/.well-known/openid-configuration", discovery),
        at("/oidc/jwks", jwks),
        at("/oidc/auth", authorize, "GET", "POST"),
        at("/oidc/auth/{uid}", resume),
        at("/oidc/request", push, "POST"),
        at("/oidc/token", token_endpoint, "POST"),
        at("/oidc/token/introspection", introspection, "POST"),
        at("/oidc/token/revocation", revocation, "POST"),
        at("/oidc/me", userinfo, "GET", "POST"),
        at("/oidc/session/end", end_session, "GET", "POST"),
        at("/oidc/session/end/confirm", confirm, "POST"),
        at("/oidc/session/end/success", success),
        at("/api/status", status),
        at("/api/experience", interaction.experience, "PUT"),
        at("/api/experience/{step:path}", interaction.experience, "PUT", "POST"),
        *(at(f"/{screen}", interaction.sign_in_page) for screen in screens),
        at("/direct/{connector:path}", interaction.direct_page),
        at("/callback/{connector}", interaction.callback_page),
        at("/consent", interaction.consent_page),
        at("/unknown-session", interaction.unknown_session_page),
        at("/sandbox/discord/authorize", interaction.discord),
        Mount("/sandbox/static", StaticFiles(directory=STATIC)),
        *control_routes(state),
        *management_routes(state, PEOPLE_HANDLERS),
        *page_routes(state),
        at("/sandbox/", front),
        Route("/", lambda _request: RedirectResponse("/sandbox/", 302)),
    ]


async def discovery(state: SandboxState, request: Request) -> Response:
    """The metadata: URLs after the request's Host, the issuer fixed."""
    base = base_url(state.config, request) + "/oidc"
    return json_response(
        {
            "authorization_endpoint": f"{base}/auth",
            "device_authorization_endpoint": f"{base}/device/auth",
            "claims_parameter_supported": False,
            "claims_supported": _CLAIMS.split(),
            "code_challenge_methods_supported": ["S256"],
            "end_session_endpoint": f"{base}/session/end",
            "grant_types_supported": [
                "implicit",
                "authorization_code",
                "refresh_token",
                "client_credentials",
                "urn:ietf:params:oauth:grant-type:device_code",
                "urn:ietf:params:oauth:grant-type:token-exchange",
            ],
            "issuer": state.config.issuer,
            "jwks_uri": f"{base}/jwks",
            "authorization_response_iss_parameter_supported": True,
            "response_modes_supported": ["form_post", "fragment", "query"],
            "response_types_supported": ["code id_token", "code", "id_token", "none"],
            "scopes_supported": list(SCOPES),
            "subject_types_supported": ["public"],
            "token_endpoint_auth_methods_supported": [
                "client_secret_basic",
                "client_secret_jwt",
                "client_secret_post",
                "private_key_jwt",
                "none",
            ],
            "token_endpoint_auth_signing_alg_values_supported": [
                *("HS256", "RS256", "PS256", "ES256", "Ed25519", "EdDSA")
            ],
            "token_endpoint": f"{base}/token",
            "id_token_signing_alg_values_supported": state.keys.algorithms(),
            "pushed_authorization_request_endpoint": f"{base}/request",
            "request_uri_parameter_supported": False,
            "userinfo_endpoint": f"{base}/me",
            "introspection_endpoint": f"{base}/token/introspection",
            "revocation_endpoint": f"{base}/token/revocation",
            "backchannel_logout_supported": True,
            "backchannel_logout_session_supported": True,
            "claim_types_supported": ["normal"],
        }
    )


async def jwks(state: SandboxState, _request: Request) -> Response:
    """The key set."""
    answer = json_response(state.keys.jwks(), headers={"cache-control": "no-cache, max-age=0, must-revalidate"})
    answer.headers["content-type"] = "application/jwk-set+json; charset=utf-8"
    return answer


async def push(state: SandboxState, request: Request) -> Response:
    """POST /oidc/request: a pushed authorization request (RFC 9126), good for 60 s and one use."""
    pairs = await body_pairs(request)
    try:
        authenticate(state, request, single(pairs))
    except OidcError as error:
        return error.response(state.config.issuer)
    uri = "urn:ietf:params:oauth:request_uri:" + token()
    kept = [(name, value) for name, value in pairs if name not in ("client_id", "client_secret")]
    state.pushed[uri] = (state.clock.now() + 60, [("client_id", state.config.client_id), *kept])
    return json_response({"expires_in": 60, "request_uri": uri}, 201, {"cache-control": "no-store"})


async def status(_state: SandboxState, _request: Request) -> Response:
    """GET /api/status."""
    return Response(status_code=204)


async def front(state: SandboxState, _request: Request) -> Response:
    """GET /sandbox/: what this is, who is in it, and how to order misbehaviour."""
    return page("front", people=list(state.people.values()), config=state.config)


async def _not_found(request: Request, _error: Exception) -> Response:
    path = request.url.path
    if not path.startswith("/oidc/"):
        return json_response({"code": "guard.not_found", "message": "Not found."}, 404)
    description = f"unrecognized route or not allowed method ({request.method} on {path.removeprefix('/oidc')})"
    return json_response(OidcError("invalid_request", description).body(), 404)


class _Helmet:
    """Headers that every answer of Logto carries.

    All but Strict-Transport-Security: over TLS on localhost, with includeSubDomains, it would lock a developer out of
    everything else there for half a year.
    """

    _FIXED: tuple[tuple[bytes, bytes], ...] = (
        (b"vary", b"Accept-Encoding, Origin"),
        (b"cross-origin-resource-policy", b"same-origin"),
        (b"origin-agent-cluster", b"?1"),
        (b"referrer-policy", b"strict-origin-when-cross-origin"),
        (b"x-content-type-options", b"nosniff"),
        (b"x-download-options", b"noopen"),
        (b"x-frame-options", b"SAMEORIGIN"),
        (b"x-permitted-cross-domain-policies", b"none"),
        (b"x-xss-protection", b"0"),
    )

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add them."""

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers: list[Any] = message["headers"]
                if not scope["path"].startswith("/sandbox/"):  # no other site may read the log or the people
                    headers.append((b"access-control-allow-origin", b"*"))
                headers += [*self._FIXED, (b"logto-core-request-id", secrets.token_urlsafe(12).encode())]
            await send(message)

        await self.app(scope, receive, dressed)
