"""People in the Management API of the stand-in Logto: everything that can happen to somebody who is signed in.

What each does to sessions, grants and tokens, and which webhook it sends if any, is as recorded: a role taken away and a session
ended say nothing to anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from .console import Json
from .hooks import announce
from .management import ApiError, Handler, named
from .people import Person
from .state import SandboxState, Session


def _person(state: SandboxState, request: Request, name: str = "id") -> Person:
    person: Person = named(state.people, request, name)
    if person.deleted:
        raise ApiError(404, "entity.not_exists_with_id", f"The user with ID `{person.sub}` does not exist.")
    return person


def shown(person: Person) -> Json:
    """A person as the API shows them."""
    return {
        "id": person.sub,
        "username": person.username,
        "primaryEmail": person.email,
        "primaryPhone": None,
        "name": person.name,
        "avatar": person.picture,
        "customData": dict(person.custom_data),
        "identities": person.identities(),
        "lastSignInAt": None,
        "createdAt": person.created_at,
        "updatedAt": person.updated_at,
        "profile": {},
        "applicationId": None,
        "isSuspended": person.suspended,
        "hasPassword": False,
    }


def _tell(state: SandboxState, request: Request, event: str, route: str, status: int, data: Any) -> None:
    content: Json = {"userAgent": request.headers.get("user-agent"), "ip": "127.0.0.1"}
    if data is not None and event == "User.Deleted":
        content["data"] = data
    content |= {"path": request.url.path.removeprefix("/api"), "method": request.method, "status": status}
    content["params"] = {"userId": request.path_params["id"]}
    content["matchedRoute"] = route
    if data is not None and event != "User.Deleted":
        content["data"] = data
    announce(state, event, content)


def _people(state: SandboxState, _request: Request, _body: Json) -> tuple[int, Any]:
    return 200, [shown(person) for person in state.people.values() if not person.deleted]


def _one(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, shown(_person(state, request))


def _suspend(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    person = state.change_person(_person(state, request).sub, suspended=body["isSuspended"] is True)
    route = "/users/:userId/is-suspended"
    _tell(state, request, "User.SuspensionStatus.Updated", route, 200, shown(person))
    if not person.suspended:  # recorded: the end of a suspension is announced twice
        _tell(state, request, "User.SuspensionStatus.Updated", route, 200, shown(person))
    return 200, shown(person)


def _delete(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    data = shown(person)
    state.change_person(person.sub, deleted=True)
    _tell(state, request, "User.Deleted", "/users/:userId", 204, data)
    return 204, None


def _change(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    names = {"name": "name", "username": "username", "avatar": "picture", "customData": "custom_data"}
    changes = {names[key]: value for key, value in body.items()}
    person = state.change_person(_person(state, request).sub, **changes)
    _tell(state, request, "User.Data.Updated", "/users/:userId", 200, shown(person))
    return 200, shown(person)


def _change_custom_data(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    state.change_person(person.sub, custom_data={**person.custom_data, **body["customData"]})
    # Recorded: nothing but the custom data is in `data`.
    _tell(state, request, "User.Data.Updated", "/users/:userId/custom-data", 200, dict(person.custom_data))
    return 200, dict(person.custom_data)


def _change_password(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    if not isinstance(body["password"], str):
        raise ApiError(400, "guard.invalid_input")
    person = _person(state, request)  # sessions and tokens live on, as recorded; and nobody has a password here
    _tell(state, request, "User.Data.Updated", "/users/:userId/password", 200, shown(person))
    return 200, shown(person)


# -- sessions and grants ----------------------------------------------------------------------------------------------


def _sessions_of(state: SandboxState, person: Person) -> list[Session]:
    return [session for session in state.sessions.values() if session.sub == person.sub]


def _sessions(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    def entry(session: Session) -> Json:
        authorizations = {
            client: {"sid": it.sid, "grantId": it.grant_id, "persistsLogout": it.persists}
            for client, it in session.authorizations.items()
        }
        payload = {
            "exp": int(session.expires_at),
            "uid": session.uid,
            "kind": "Session",
            "loginTs": int(session.login_at),
        }
        return {"payload": {**payload, "accountId": session.sub, "authorizations": authorizations}}

    return 200, {"sessions": [entry(session) for session in _sessions_of(state, _person(state, request))]}


def _end_session(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    mine = {session.uid: session for session in _sessions_of(state, _person(state, request))}
    session: Session = named(mine, request, "uid")
    grants = [authorization.grant_id for authorization in session.authorizations.values()]
    state.end_session(session)
    if request.query_params.get("revokeGrantsTarget") in ("all", "firstParty"):
        for grant_id in grants:
            state.revoke_grant(grant_id)
    return 204, None


def _grants(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    sub = _person(state, request).sub
    grants = [
        {"id": grant.id, "payload": {"kind": "Grant", "accountId": sub, "openid": {"scope": " ".join(grant.scopes)}}}
        for grant in state.grants.values()
        if grant.sub == sub
    ]
    return 200, {"grants": grants}


def _revoke_grant(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    mine = {grant.id: grant for grant in state.grants.values() if grant.sub == person.sub}
    grant = named(mine, request, "grant")
    for session in _sessions_of(state, person):  # recorded: the person has to sign in again
        if any(authorization.grant_id == grant.id for authorization in session.authorizations.values()):
            state.end_session(session)
    state.revoke_grant(grant.id)
    return 204, None


# -- roles, organizations, identities ---------------------------------------------------------------------------------


def _roles_of(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    return 200, [role for role in state.console.roles.values() if role["name"] in person.roles]


def _role_names(state: SandboxState, body: Json) -> list[str]:
    if unknown := set(body["roleIds"]) - state.console.roles.keys():
        raise ApiError(404, "entity.not_found", f"{len(unknown)} of these roles do not exist.")
    return [str(state.console.roles[role_id]["name"]) for role_id in body["roleIds"]]


def _give_roles(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    names = dict.fromkeys([*person.roles, *_role_names(state, body)])
    state.change_person(person.sub, roles=tuple(names))
    return 201, {"roleIds": body["roleIds"], "addedRoleIds": body["roleIds"]}


def _take_role(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    name = named(state.console.roles, request, "role")["name"]
    state.change_person(person.sub, roles=tuple(role for role in person.roles if role != name))
    return 204, None


def _leave_organization(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    organization, person = named(state.console.organizations, request), _person(state, request, "user")
    kept = {it: roles for it, roles in person.organization_roles.items() if it != organization["id"]}
    state.change_person(person.sub, organization_roles=kept)
    content = {"path": request.url.path.removeprefix("/api"), "method": "DELETE", "status": 204}
    content |= {"params": {"id": organization["id"], "userId": person.sub}}
    content |= {"organizationId": organization["id"], "removedUserIds": [person.sub]}
    announce(state, "Organization.Membership.Updated", content)
    return 204, None


def _set_organization_roles(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    organization, person = named(state.console.organizations, request), _person(state, request, "user")
    roles = {
        **person.organization_roles,
        organization["id"]: tuple(body["organizationRoleIds"]),
    }  # here an id is the name
    state.change_person(person.sub, organization_roles=roles)
    return 204, None


def _link(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    person = _person(state, request)
    status = 200 if person.linked else 201
    details = body.get("details", {})
    state.change_person(person.sub, linked=True, discord_id=str(body["userId"]), discord_details=details)
    return status, person.identities()


def _unlink(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, shown(state.change_person(_person(state, request).sub, linked=False))


PEOPLE_HANDLERS: Mapping[tuple[str, str], Handler] = {
    ("GET", "/users"): _people,
    ("GET", "/users/{id}"): _one,
    ("PATCH", "/users/{id}"): _change,
    ("DELETE", "/users/{id}"): _delete,
    ("PATCH", "/users/{id}/is-suspended"): _suspend,
    ("PATCH", "/users/{id}/custom-data"): _change_custom_data,
    ("PATCH", "/users/{id}/password"): _change_password,
    ("GET", "/users/{id}/sessions"): _sessions,
    ("DELETE", "/users/{id}/sessions/{uid}"): _end_session,
    ("GET", "/users/{id}/grants"): _grants,
    ("DELETE", "/users/{id}/grants/{grant}"): _revoke_grant,
    ("GET", "/users/{id}/roles"): _roles_of,
    ("POST", "/users/{id}/roles"): _give_roles,
    ("DELETE", "/users/{id}/roles/{role}"): _take_role,
    ("PUT", "/users/{id}/identities/discord"): _link,
    ("DELETE", "/users/{id}/identities/discord"): _unlink,
    ("DELETE", "/organizations/{id}/users/{user}"): _leave_organization,
    ("PUT", "/organizations/{id}/users/{user}/roles"): _set_organization_roles,
}
