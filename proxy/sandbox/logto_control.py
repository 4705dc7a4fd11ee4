"""The control interface of the stand-in Logto, below /sandbox/api: faults, lies, keys, clock, people, the request log.

JSON in, JSON out. Bodies must say that they are JSON: a page from elsewhere cannot send that without asking first, and
is never allowed to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .faults import Fault
from .people import Person
from .state import SandboxState

_PREFIX = "/sandbox/api"
_TUPLES = frozenset({"redirect_uris", "post_logout_redirect_uris", "access_control_roles"})
_CONFIGURABLE = _TUPLES | {
    "always_issue_refresh_token",
    "backchannel_logout_uri",
    "backchannel_logout_session_required",
    "unknown_session_redirect_url",
    "trust_proxy_header",
    "app_deleted",
    "secret_expired",
    "id_token_claims",
}

Handler = Callable[[SandboxState, Request, dict[str, Any]], Any]


def control_routes(state: SandboxState) -> list[Route]:
    """The routes; each handler is a plain function over the state and the body."""
    return [
        _route(state, "/state", "GET", _overview),
        _route(state, "/reset", "POST", _reset),
        _route(state, "/faults", "POST", _add_fault),
        _route(state, "/faults", "DELETE", _clear_faults),
        _route(state, "/lies", "PUT", _lies),
        _route(state, "/authorize-error", "PUT", _authorize_error),
        _route(state, "/clock", "PUT", _clock),
        _route(state, "/keys", "POST", _rotate),
        _route(state, "/log", "GET", _log),
        _route(state, "/log", "DELETE", _clear_log),
        _route(state, "/config", "PATCH", _configure),
        _route(state, "/people", "GET", _people),
        _route(state, "/people/{sub}", "PATCH", _change_person),
        _route(state, "/people/{sub}", "DELETE", _delete_person),
        _route(state, "/people/{sub}/sessions", "DELETE", _end_sessions),
        _route(state, "/people/{sub}/grants", "DELETE", _end_grants),
    ]


def _route(state: SandboxState, path: str, method: str, handler: Handler) -> Route:
    async def call(request: Request) -> Response:
        try:
            body = await _body(request) if method in ("POST", "PUT", "PATCH") else {}
            result = handler(state, request, body)
        except KeyError as error:
            return JSONResponse({"error": f"missing, or no such thing: {error.args[0]}"}, 404)
        except (ValueError, TypeError, AttributeError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse(result, headers={"cache-control": "no-store"})

    return Route(_PREFIX + path, call, methods=[method])


async def _body(request: Request) -> dict[str, Any]:
    if not await request.body():
        return {}
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ValueError("content-type must be application/json")
    body = await request.json()
    if not isinstance(body, dict):
        raise ValueError("a JSON object, please")  # noqa: TRY004 -- the caller's mistake in a value, not ours in a type
    return body


def _overview(state: SandboxState, _request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    return {
        "issuer": state.config.issuer,
        "client_id": state.config.client_id,
        "redirect_uris": state.config.redirect_uris,
        "now": state.clock.now(),
        "sessions": [{"sub": session.sub, "expires_at": session.expires_at} for session in state.sessions.values()],
        "grants": len(state.grants),
        "faults": [dataclasses.asdict(fault) for fault in state.faults],
        "lies": sorted(state.lies),
        "kid": state.keys.current.kid,
    }


def _reset(state: SandboxState, _request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    state.reset()
    return {}


def _add_fault(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    fault = Fault(**body)
    state.faults.append(fault)
    return dataclasses.asdict(fault)


def _clear_faults(state: SandboxState, _request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    state.faults.clear()
    state.release()
    return {}


def _lies(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    state.lie(*body["lies"])
    return {"lies": sorted(state.lies)}


def _authorize_error(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    error = body["error"]
    if error is not None and not isinstance(error, str):
        raise ValueError("error: a string, or null to stop")
    state.authorize_error = error
    return {"error": error}


def _clock(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    """`offset` sets, `advance` adds seconds; `stopped` lets time stand still or run again."""
    clock = state.clock
    if "stopped" in body:
        clock.stop(stopped=body["stopped"] is True)
    elif "offset" in body:
        clock.offset = float(body["offset"])
    else:
        clock.offset += float(body["advance"])
    return {"now": clock.now(), "offset": clock.offset, "stopped": clock.stopped_at is not None}


def _rotate(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    kind = body.get("kind", "EC")
    if kind not in ("EC", "RSA"):
        raise ValueError("kind: EC or RSA")
    return {"kid": state.keys.rotate(kind)}


def _log(state: SandboxState, request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    endpoint = request.query_params.get("endpoint")
    entries = [entry.as_json() for entry in state.log if endpoint in (None, entry.endpoint)]
    return {"count": len(entries), "requests": entries}


def _clear_log(state: SandboxState, _request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    state.log.clear()
    return {}


def _configure(state: SandboxState, _request: Request, body: dict[str, Any]) -> dict[str, Any]:
    if unknown := sorted(body.keys() - _CONFIGURABLE):
        raise ValueError(f"not configurable while running: {', '.join(unknown)}")
    changes: dict[str, Any] = {name: tuple(value) if name in _TUPLES else value for name, value in body.items()}
    if "id_token_claims" in changes:
        changes["id_token_claims"] = frozenset(changes["id_token_claims"])
    state.config = dataclasses.replace(state.config, **changes)
    return {name: list(value) if isinstance(value, frozenset) else value for name, value in changes.items()}


def _people(state: SandboxState, _request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    return {"people": [_shown(person) for person in state.people.values()]}


def _shown(person: Person) -> dict[str, Any]:
    return dataclasses.asdict(person)


def _change_person(state: SandboxState, request: Request, body: dict[str, Any]) -> dict[str, Any]:
    changes = dict(body)
    if "roles" in changes:
        changes["roles"] = tuple(changes["roles"])
    if "organization_roles" in changes:
        changes["organization_roles"] = {org: tuple(roles) for org, roles in changes["organization_roles"].items()}
    return _shown(state.change_person(request.path_params["sub"], **changes))


def _delete_person(state: SandboxState, request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    return _shown(state.change_person(request.path_params["sub"], deleted=True))


def _end_sessions(state: SandboxState, request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    """Logto's session DELETE; with ?grants=all the grants go as well."""
    sub = state.people[request.path_params["sub"]].sub
    sessions = [session for session in state.sessions.values() if session.sub == sub]
    for session in sessions:
        state.end_session(session)
    if request.query_params.get("grants") == "all":
        state.revoke_person(sub)
    return {"ended": len(sessions)}


def _end_grants(state: SandboxState, request: Request, _body: dict[str, Any]) -> dict[str, Any]:
    """Logto's grant DELETE, after which the person has to sign in again, as recorded."""
    state.revoke_person(state.people[request.path_params["sub"]].sub)
    return {}
