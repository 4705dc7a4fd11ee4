"""The pages between /oidc/auth and its end: sign-in, Discord's consent, the way back, and Logto's own consent.

Two ways lead through: plain pages and links for people (no script needed), and the experience API that the real
sign-in page drives, for programs that already speak it. A real Logto's page loads a script and then goes to discord.com
by itself; here the page *is* the one that plays discord.com.
"""

from __future__ import annotations

import dataclasses
import secrets
import string
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from .logto_authorize import interaction_of
from .logto_pages import base_url, notice, page
from .oauth import OidcError, json_response, redirect, session_not_found, token
from .people import Person
from .state import Interaction, SandboxState

CONNECTOR_ID = "sandboxdiscd"  # 12 characters, as Logto's are
_DENIED = "The resource owner or authorization server denied the request"
_GONE = "Session not found. Please go back and sign in again."
_ALPHABET = string.ascii_lowercase + string.digits


# -- pages ------------------------------------------------------------------------------------------------------------


async def sign_in_page(state: SandboxState, request: Request) -> Response:
    """/sign-in, /register and their kin; without an interaction, off to the dead end."""
    app_id = request.query_params.get("app_id")
    if interaction_of(state, request, app_id) is None:
        return redirect(_unknown_session(state, request), 302, no_store=False)
    register = request.url.path.endswith("register")
    onward = "/direct/social/discord?" + urlencode({"app_id": app_id or "", "fallback": request.url.path[1:]})
    other = ("/sign-in?" if register else "/register?") + urlencode({"app_id": app_id or ""})
    return page("sign_in", register=register, onward=onward, other=other)


async def direct_page(state: SandboxState, request: Request) -> Response:
    """/direct/social/discord: straight to what plays discord.com. 200 even without an interaction, as recorded."""
    app_id = request.query_params.get("app_id", "")
    fallback = f"/{request.query_params.get('fallback', 'sign-in')}?" + urlencode({"app_id": app_id})
    if request.url.path != "/direct/social/discord":
        return notice("No such connector", "The stand-in has one connector: Discord.", back="/" + fallback.lstrip("/"))
    return _discord_page(state, "")


async def discord(state: SandboxState, request: Request) -> Response:
    """/sandbox/discord/authorize plays discord.com/oauth2/authorize: without a choice the page, with one the way back."""
    given = request.query_params
    if "person" not in given and "cancel" not in given:
        return _discord_page(state, given.get("state", ""))
    if "cancel" in given:
        back = {"error": "access_denied", "error_description": _DENIED}
    else:
        code = secrets.token_urlsafe(22)
        state.discord_codes[code] = given["person"]
        back = {"code": code}
    back["state"] = given.get("state") or secrets.token_hex(8)
    return redirect(f"{base_url(state.config, request)}/callback/{CONNECTOR_ID}?{urlencode(back)}", 302)


def _discord_page(state: SandboxState, discord_state: str) -> Response:
    latest = {person.discord_id: person for person in state.people.values()}
    people = [
        (person, "/sandbox/discord/authorize?" + urlencode({"person": person.sub, "state": discord_state}))
        for person in latest.values()
    ]
    cancel = "/sandbox/discord/authorize?" + urlencode({"cancel": "1", "state": discord_state})
    return page("discord", people=people, cancel=cancel)


async def callback_page(state: SandboxState, request: Request) -> Response:
    """/callback/{connector}, where discord.com sends the browser.

    The stand-in's own pages finish the sign-in here; for a program that began with the experience API this is only the
    200 of a real Logto. What fails ends here, on a page of Logto's: the application never hears of it.
    """
    given = request.query_params
    interaction = interaction_of(state, request)
    if "error" in given:
        text = f"Discord said: {given.get('error_description', given['error'])}."
        return notice("Sign-in was not completed", text, back=_again(interaction))
    if interaction is None or interaction.prompt != "login":
        return notice("This sign-in is over", _GONE)
    if interaction.driven:
        return notice("Signing in", "Go on with the experience API.", mood="info")
    try:
        interaction.sub = _identify(state, state.discord_codes.pop(given.get("code", ""), None)).sub
    except OidcError as error:
        return notice("Sign-in was refused", error.message, back=_again(interaction))
    return redirect(f"{base_url(state.config, request)}/oidc/auth/{interaction.uid}")


def _again(interaction: Interaction | None) -> str | None:
    if interaction is None:
        return None
    return "/sign-in?" + urlencode({"app_id": interaction.request.params["client_id"]})


async def consent_page(state: SandboxState, request: Request) -> Response:
    """/consent: granted by itself, for Logto's applications are first-party; or refused by access control."""
    interaction = interaction_of(state, request, request.query_params.get("app_id"))
    if interaction is None or interaction.prompt != "consent":
        return redirect(_unknown_session(state, request), 302, no_store=False)
    session = state.session_by_cookie(state.signer.get(request, "_session"))
    if session is None or session.sub is None:
        return redirect(_unknown_session(state, request), 302, no_store=False)
    if not state.may_use(state.people[session.sub]):
        return notice("Access denied", "Your account may not use this application.")
    interaction.consented = True
    return redirect(f"{base_url(state.config, request)}/oidc/auth/{interaction.uid}", 302, no_store=False)


async def unknown_session_page(_state: SandboxState, _request: Request) -> Response:
    """/unknown-session: the dead end of a browser without an interaction."""
    return notice("Session not found", "There is no sign-in under way in this browser. Please go back to the app.")


def _unknown_session(state: SandboxState, request: Request) -> str:
    return state.config.unknown_session_redirect_url or base_url(state.config, request) + "/unknown-session"


# -- who it is ----------------------------------------------------------------------------------------------------------


def _identify(state: SandboxState, sub: str | None, *, register: bool = True) -> Person:
    """The person behind a Discord account, registered if need be. OidcError (an API error) when they may not enter."""
    person = state.people.get(sub or "")
    if person is None:
        raise _api_error(400, "connector.general", "Error occurred in connector: the code is unknown.")
    if person.suspended:
        raise _api_error(401, "user.suspended", "This account is suspended.")
    if person.registered and not person.deleted:
        return person
    if not register:
        raise _api_error(404, "user.identity_not_exist", "The social account has not been registered yet.")
    return _register(state, person)


def _register(state: SandboxState, person: Person) -> Person:
    now = int(state.clock.now() * 1000)
    if person.deleted:  # the Discord account lives on; Logto makes a new user of it, who has nothing of the old one
        person = dataclasses.replace(
            person,
            sub="".join(secrets.choice(_ALPHABET) for _ in range(12)),
            roles=(),
            organization_roles={},
            custom_data={},
            deleted=False,
        )
        state.people[person.sub] = person
    person.registered = True
    person.created_at = person.updated_at = now
    return person


def _api_error(status: int, code: str, message: str) -> OidcError:
    return OidcError("", status=status, code=code, message=message)


# -- the experience API -------------------------------------------------------------------------------------------------


async def experience(state: SandboxState, request: Request) -> Response:
    """PUT and POST below /api/experience, in the recorded shapes."""
    interaction = interaction_of(state, request, request.headers.get("logto-app-id"))
    try:
        if interaction is None or interaction.prompt != "login":
            raise session_not_found("interaction session not found")
        step = request.url.path.removeprefix("/api/experience").strip("/")
        body = await request.json() if await request.body() else {}
        return _step(state, request, interaction, step, body if isinstance(body, dict) else {})
    except OidcError as error:
        return json_response(_api_body(error), error.status)
    except ValueError:
        return json_response({"code": "guard.invalid_input", "message": "The request body is invalid."}, 400)


def _api_body(error: OidcError) -> dict[str, object]:
    if error.error:
        return dict(error.body())
    data: dict[str, object] = {"code": error.code}
    if error.status == 404:
        data["data"] = {}
    return data | {"message": error.message}


def _step(
    state: SandboxState, request: Request, interaction: Interaction, step: str, body: dict[str, object]
) -> Response:
    if step in ("", "interaction-event"):
        interaction.driven = True  # from now on by a program, see callback_page
        if step == "interaction-event":
            interaction.registering = body.get("interactionEvent") == "Register"
        return Response(status_code=204)
    if step == f"verification/social/{CONNECTOR_ID}/authorization-uri":
        return _authorization_uri(state, request, interaction, body)
    if step == f"verification/social/{CONNECTOR_ID}/verify":
        return _verify(state, interaction, body)
    if step == "identification":
        return _identification(state, interaction, body)
    if step == "submit":
        if interaction.identified is None:
            raise _api_error(404, "session.identifier_not_found", "User identifier not found.")
        interaction.sub = interaction.identified
        return json_response({"redirectTo": f"{base_url(state.config, request)}/oidc/auth/{interaction.uid}"})
    raise _api_error(404, "entity.not_found", "The resource does not exist.")


def _authorization_uri(
    state: SandboxState, request: Request, interaction: Interaction, body: dict[str, object]
) -> Response:
    base = base_url(state.config, request)
    verification = token()[:21]
    interaction.verified[verification] = None
    query = {
        "client_id": "111111111111111111",
        "redirect_uri": f"{base}/callback/{CONNECTOR_ID}",
        "response_type": "code",
        "scope": "identify email",
        "state": str(body.get("state", "")),
    }
    uri = f"{base}/sandbox/discord/authorize?{urlencode(query)}"
    return json_response({"authorizationUri": uri, "verificationId": verification})


def _verify(state: SandboxState, interaction: Interaction, body: dict[str, object]) -> Response:
    verification, data = str(body.get("verificationId", "")), body.get("connectorData")
    code = str(data.get("code", "")) if isinstance(data, dict) else ""
    if verification not in interaction.verified:
        raise _api_error(404, "session.verification_session_not_found", "The verification was not found.")
    sub = state.discord_codes.pop(code, None)
    if sub is None:
        raise _api_error(400, "connector.general", "Error occurred in connector.")
    interaction.verified[verification] = sub
    return json_response({"verificationId": verification})


def _identification(state: SandboxState, interaction: Interaction, body: dict[str, object]) -> Response:
    sub = interaction.verified.get(str(body.get("verificationId", "")))
    known = sub in state.people and state.people[sub].registered and not state.people[sub].deleted
    interaction.identified = _identify(state, sub, register=interaction.registering).sub
    return Response(status_code=204) if known else Response("Created", 201, media_type="text/plain")
