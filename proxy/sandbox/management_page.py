"""A page to make things happen to people by clicking: suspended, deleted, out of a session or a role, as in Logto's console.

Every button does what the Management API does, by the very same functions: sessions, grants, tokens and webhooks follow. The
buttons are forms with a token of this run in them, which no other site can know.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from .logto_pages import notice, page
from .management import ApiError
from .management_people import PEOPLE_HANDLERS
from .people import Person
from .state import SandboxState

_HERE = "/sandbox/people"
_Done = Callable[[SandboxState, Request, Person, FormData], None]


def page_routes(state: SandboxState) -> list[Route]:
    """The page, and where its buttons lead."""
    xsrf = secrets.token_urlsafe(24)

    async def show(_: Request) -> Response:
        people = [
            {
                "person": person,
                "sessions": sum(session.sub == person.sub for session in state.sessions.values()),
                "grants": sum(grant.sub == person.sub for grant in state.grants.values()),
            }
            for person in state.people.values()
            if person.registered and not person.deleted
        ]
        return page("people", people=people, xsrf=xsrf)

    async def act(request: Request) -> Response:
        form = await request.form()
        if not hmac.compare_digest(str(form.get("xsrf", "")).encode(), xsrf.encode()):
            return notice("Not from this page", "Press the button on the page itself.", back=_HERE, status=403)
        person, action = state.people.get(request.path_params["sub"]), _ACTIONS.get(request.path_params["action"])
        if person is None or action is None:
            return notice("No such thing", "Neither the person nor the button is known.", back=_HERE, status=404)
        try:
            action(state, request, person, form)
        except ApiError as error:
            return notice("That did not work", str(error.body["message"]), back=_HERE, status=error.status)
        return RedirectResponse(_HERE, 303)

    return [Route(_HERE, show), Route(_HERE + "/{sub}/{action}", act, methods=["POST"])]


def _call(state: SandboxState, request: Request, method: str, path: str, body: Any = None, **params: str) -> None:
    """Do as the Management API does on `method` `path`."""
    scope: dict[str, Any] = {**request.scope, "method": method, "path_params": params, "query_string": b""}
    bare, _, query = path.partition("?")
    scope["path"], scope["query_string"] = "/api" + bare.format(**params), query.encode()
    PEOPLE_HANDLERS[method, bare](state, Request(scope), body or {})


def _suspend(state: SandboxState, request: Request, person: Person, _: FormData) -> None:
    body = {"isSuspended": not person.suspended}
    _call(state, request, "PATCH", "/users/{id}/is-suspended", body, id=person.sub)


def _delete(state: SandboxState, request: Request, person: Person, _: FormData) -> None:
    _call(state, request, "DELETE", "/users/{id}", id=person.sub)


def _end_sessions(state: SandboxState, request: Request, person: Person, form: FormData) -> None:
    query = "?revokeGrantsTarget=all" if form.get("grants") else ""
    for uid in [session.uid for session in state.sessions.values() if session.sub == person.sub]:
        _call(state, request, "DELETE", "/users/{id}/sessions/{uid}" + query, id=person.sub, uid=uid)


def _take_role(state: SandboxState, request: Request, person: Person, form: FormData) -> None:
    for role in [role["id"] for role in state.console.roles.values() if role["name"] == form.get("role")]:
        _call(state, request, "DELETE", "/users/{id}/roles/{role}", id=person.sub, role=role)


def _leave(state: SandboxState, request: Request, person: Person, form: FormData) -> None:
    organization = str(form.get("organization", ""))
    _call(state, request, "DELETE", "/organizations/{id}/users/{user}", id=organization, user=person.sub)


def _unlink(state: SandboxState, request: Request, person: Person, _: FormData) -> None:
    _call(state, request, "DELETE", "/users/{id}/identities/discord", id=person.sub)


_ACTIONS: Mapping[str, _Done] = {
    "suspend": _suspend,
    "delete": _delete,
    "end-sessions": _end_sessions,
    "take-role": _take_role,
    "leave": _leave,
    "unlink": _unlink,
}
