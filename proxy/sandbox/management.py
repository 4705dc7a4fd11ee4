"""The Management API of the stand-in Logto, as far as setting up a gateway needs it: recorded statuses, shapes and traps.

The traps: applications and webhooks may exist twice without a word, PATCH replaces whole objects inside an application, a
connector's configuration must be complete, and the seeded client `m-default` is known under the admin endpoint's name only.
"""

from __future__ import annotations

import dataclasses
import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .config import SANDBOX_ROBOT_ID, SANDBOX_ROBOT_SECRET
from .console import Json, new_id
from .logto_interaction import CONNECTOR_ID
from .oauth import OidcError, json_response, token
from .people import EXTENDED_CLAIMS
from .state import SandboxState

AUDIENCE = "https://default.logto.app/api"
ADMIN_CLIENT = "m-default"
_SETTABLE = ("name", "description", "oidcClientMetadata", "customClientMetadata", "customData")

Handler = Callable[[SandboxState, Request, Any], tuple[int, Any]]


class ApiError(Exception):
    """An answer of the API that is not the one hoped for."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status = status
        self.body = {"code": code, "message": message or code}


def machine_token(state: SandboxState, client_id: str, resource: str | None) -> Json:
    """client_credentials (RFC 6749 4.4): a token for the Management API or another one, with what the client may do there."""
    if resource == AUDIENCE:
        scope = "all" if client_id == ADMIN_CLIENT or state.console.manages(client_id) else ""
    elif resource is not None and resource in state.config.resources:
        scope = " ".join(state.config.robot_scopes.get(resource, ())) if client_id == SANDBOX_ROBOT_ID else ""
    else:
        raise OidcError("invalid_target", "resource indicator is missing, or unknown")
    now = int(state.clock.now())
    claims = {"jti": token(), "sub": client_id, "iat": now, "exp": now + 3600, "scope": scope, "client_id": client_id}
    claims |= {"iss": state.config.issuer, "aud": resource}
    made = state.keys.sign(claims, typ="at+jwt")
    return {"access_token": made, "expires_in": 3600, "token_type": "Bearer", "scope": scope}


def is_machine(state: SandboxState, request: Request, client_id: str, secret: str | None) -> bool:
    """Whether `client_id` is a machine-to-machine client here; OidcError when it is, and its secret is wrong."""
    if client_id == ADMIN_CLIENT:
        # Its tenant is found by the admin endpoint's name: under any other it does not exist.
        if request.headers.get("host", "") != urlsplit(state.config.admin_endpoint or state.config.endpoint).netloc:
            return False
        expected: str | None = state.config.admin_secret
    elif client_id == SANDBOX_ROBOT_ID:
        expected = SANDBOX_ROBOT_SECRET
    else:
        if state.console.applications.get(client_id, {}).get("type") != "MachineToMachine":
            return False
        expected = state.console.secret_of(client_id)
    if secret is None or expected is None or not hmac.compare_digest(secret.encode(), expected.encode()):
        raise OidcError("invalid_client", "client authentication failed", status=401)
    return True


def management_routes(state: SandboxState, handlers: Mapping[tuple[str, str], Handler]) -> list[Route]:
    """The routes; each handler is a plain function over the state and the body, giving status and body."""
    return [_route(state, method, path, handler) for (method, path), handler in {**HANDLERS, **handlers}.items()]


def _route(state: SandboxState, method: str, path: str, handler: Handler) -> Route:
    async def call(request: Request) -> Response:
        try:
            _authorize(state, request)
            body = await request.json() if await request.body() else {}
            status, answer = handler(state, request, body)
        except ApiError as error:
            return json_response(error.body, error.status)
        except (KeyError, TypeError, ValueError, AttributeError):
            return json_response({"code": "guard.invalid_input", "message": "The request is invalid."}, 400)
        if status == 204:
            return Response(status_code=204)
        return json_response(answer, status) if isinstance(answer, (dict, list)) else Response(answer, status)

    return Route("/api" + path, call, methods=[method])


def _authorize(state: SandboxState, request: Request) -> None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not value:
        raise ApiError(401, "auth.authorization_header_missing", "Authorization header is missing.")
    try:
        claims = state.keys.verify(value, state.config.issuer)
    except jwt.PyJWTError:
        claims = {}
    if claims.get("aud") != AUDIENCE or claims.get("exp", 0) <= state.clock.now():
        raise ApiError(401, "auth.unauthorized", "Unauthorized. Please check credentials and its scope.")
    if claims.get("scope") != "all":
        raise ApiError(403, "auth.forbidden", "Forbidden. Please check your user roles and permissions.")


def named(things: Mapping[str, Any], request: Request, name: str = "id") -> Any:
    """The thing that the path names; 404 for none."""
    try:
        return things[request.path_params[name]]
    except KeyError:
        raise ApiError(404, "entity.not_found", "The resource does not exist.") from None


def _page(request: Request, things: list[Any]) -> list[Any]:
    number, size = int(request.query_params.get("page", 1)), int(request.query_params.get("page_size", 20))
    if "page" not in request.query_params and "page_size" not in request.query_params:
        return things
    return things[(number - 1) * size : number * size]


# -- applications -----------------------------------------------------------------------------------------------------


def _applications(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    kinds = request.query_params.getlist("types")
    found = [entry for entry in state.console.applications.values() if not kinds or entry["type"] in kinds]
    return 200, _page(request, found)


def _application(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, named(state.console.applications, request)


def _add_application(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    _check_addresses(body.get("oidcClientMetadata", {"redirectUris": [], "postLogoutRedirectUris": []}))
    made = state.console.add_application(body)
    if made["type"] == "Traditional":
        state.config = state.console.signs_in(state.config, made)
    return 200, made


def _change_application(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    application = named(state.console.applications, request)
    if "oidcClientMetadata" in body:
        _check_addresses(body["oidcClientMetadata"])
    application |= {name: body[name] for name in _SETTABLE if name in body}  # whole objects, as recorded
    if application["type"] == "Traditional":
        state.config = state.console.signs_in(state.config, application)
    return 200, application


def _delete_application(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    application = named(state.console.applications, request)
    del state.console.applications[application["id"]]
    state.console.secrets.pop(application["id"], None)
    for members in state.console.assigned.values():
        members.discard(application["id"])
    if application["id"] == state.config.client_id:
        state.config = dataclasses.replace(state.config, app_deleted=True)
    return 204, None


def _check_addresses(addresses: Json) -> None:
    if not {"redirectUris", "postLogoutRedirectUris"} <= addresses.keys():
        raise ApiError(400, "guard.invalid_input", "Error in request body: oidcClientMetadata is incomplete.")


def _secrets(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, state.console.secrets[named(state.console.applications, request)["id"]]


# -- connectors and the sign-in experience ----------------------------------------------------------------------------


def _connectors(state: SandboxState, _request: Request, _body: Json) -> tuple[int, Any]:
    return 200, list(state.console.connectors.values())


def _add_connector(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    if body["connectorId"] != "discord-universal":
        raise ApiError(422, "entity.create_failed", "The stand-in has one connector: Discord.")
    if state.console.connectors:
        message = "Can not create multiple instance with picked standard connector."
        raise ApiError(422, "connector.multiple_instances_not_supported", message)
    _check_connector(body["config"])
    made = {"id": CONNECTOR_ID, "syncProfile": body.get("syncProfile", False), "config": body["config"], "metadata": {}}
    made |= {"connectorId": "discord-universal", "target": "discord", "platform": "Universal", "type": "Social"}
    state.console.connectors[CONNECTOR_ID] = made
    return 200, made


def _change_connector(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    connector = named(state.console.connectors, request)
    if "config" in body:
        _check_connector(body["config"])
    connector |= {name: body[name] for name in ("config", "syncProfile", "metadata") if name in body}
    return 200, connector


def _check_connector(config: Json) -> None:
    if not {"clientId", "clientSecret"} <= config.keys():
        raise ApiError(400, "connector.invalid_config", "The connector's config is invalid.")


def _delete_connector(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    del state.console.connectors[named(state.console.connectors, request)["id"]]
    return 204, None


def _experience(state: SandboxState, _request: Request, _body: Json) -> tuple[int, Any]:
    return 200, state.console.sign_in_experience


def _change_experience(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    if unknown := body.keys() - state.console.sign_in_experience.keys():
        raise ApiError(400, "guard.invalid_input", f"Error in request body: {sorted(unknown)}")
    state.console.sign_in_experience |= body
    if "unknownSessionRedirectUrl" in body:
        url = body["unknownSessionRedirectUrl"]
        state.config = dataclasses.replace(state.config, unknown_session_redirect_url=url)
    return 200, state.console.sign_in_experience


def _claims(state: SandboxState, _request: Request, _body: Json) -> tuple[int, Any]:
    return 200, {"enabledExtendedClaims": state.console.id_token_claims}


def _set_claims(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    claims = list(body["enabledExtendedClaims"])
    if not EXTENDED_CLAIMS.issuperset(claims):
        raise ApiError(400, "guard.invalid_input", "Error in request body: enabledExtendedClaims")
    state.console.id_token_claims = claims
    state.config = dataclasses.replace(state.config, id_token_claims=frozenset(claims))
    return 200, {"enabledExtendedClaims": claims}


# -- webhooks, roles, resources, organizations ------------------------------------------------------------------------


def _hooks(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, _page(request, list(state.console.hooks.values()))


def _add_hook(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    return 201, state.console.add_hook(body, secrets.token_urlsafe(24))


def _change_hook(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    hook = named(state.console.hooks, request)
    hook |= {name: body[name] for name in ("name", "events", "config", "enabled") if name in body}
    return 200, hook


def _delete_hook(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    del state.console.hooks[named(state.console.hooks, request)["id"]]
    return 204, None


def _roles(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    kind = request.query_params.get("type")
    return 200, _page(request, [role for role in state.console.roles.values() if kind in (None, role["type"])])


def _add_role(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    if any(role["name"] == body["name"] for role in state.console.roles.values()):
        raise ApiError(422, "role.name_in_use", f"This role name {body['name']} is already in use")
    return 200, state.console.add_role(body)


def _delete_role(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    role = named(state.console.roles, request)
    del state.console.roles[role["id"]]
    for person in state.people.values():
        person.roles = tuple(name for name in person.roles if name != role["name"])
    return 204, None


def _role_applications(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    members = state.console.assigned.get(named(state.console.roles, request)["id"], set())
    return 200, _page(request, [entry for it, entry in state.console.applications.items() if it in members])


def _assign(state: SandboxState, request: Request, body: Json) -> tuple[int, Any]:
    members = state.console.assigned.setdefault(named(state.console.roles, request)["id"], set())
    if members & set(body["applicationIds"]):
        raise ApiError(422, "role.application_exists", "The application is already added to this role.")
    members |= set(body["applicationIds"])
    return 201, "Created"


def _resources(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, _page(request, list(state.console.resources.values()))


def _add_resource(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    indicator = body["indicator"]
    if any(resource["indicator"] == indicator for resource in state.console.resources.values()):
        message = f"The API identifier {indicator} is already in use"
        raise ApiError(422, "resource.resource_identifier_in_use", message)
    made = {"tenantId": "default", "id": new_id(), "name": body["name"], "indicator": indicator, "isDefault": False}
    state.console.resources[made["id"]] = made | {"accessTokenTtl": 3600, "scopes": []}
    return 201, state.console.resources[made["id"]]


def _delete_resource(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    del state.console.resources[named(state.console.resources, request)["id"]]
    return 204, None


def _organizations(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    return 200, _page(request, list(state.console.organizations.values()))


def _add_organization(state: SandboxState, _request: Request, body: Json) -> tuple[int, Any]:
    made = {"tenantId": "default", "id": new_id(12), "name": body["name"], "customData": body.get("customData", {})}
    state.console.organizations[made["id"]] = made
    return 201, made


def _delete_organization(state: SandboxState, request: Request, _body: Json) -> tuple[int, Any]:
    del state.console.organizations[named(state.console.organizations, request)["id"]]
    return 204, None


HANDLERS: Mapping[tuple[str, str], Handler] = {
    ("GET", "/applications"): _applications,
    ("POST", "/applications"): _add_application,
    ("GET", "/applications/{id}"): _application,
    ("PATCH", "/applications/{id}"): _change_application,
    ("DELETE", "/applications/{id}"): _delete_application,
    ("GET", "/applications/{id}/secrets"): _secrets,
    ("GET", "/connectors"): _connectors,
    ("POST", "/connectors"): _add_connector,
    ("PATCH", "/connectors/{id}"): _change_connector,
    ("DELETE", "/connectors/{id}"): _delete_connector,
    ("GET", "/sign-in-exp"): _experience,
    ("PATCH", "/sign-in-exp"): _change_experience,
    ("GET", "/configs/id-token"): _claims,
    ("PUT", "/configs/id-token"): _set_claims,
    ("GET", "/hooks"): _hooks,
    ("POST", "/hooks"): _add_hook,
    ("PATCH", "/hooks/{id}"): _change_hook,
    ("DELETE", "/hooks/{id}"): _delete_hook,
    ("GET", "/roles"): _roles,
    ("POST", "/roles"): _add_role,
    ("DELETE", "/roles/{id}"): _delete_role,
    ("GET", "/roles/{id}/applications"): _role_applications,
    ("POST", "/roles/{id}/applications"): _assign,
    ("GET", "/resources"): _resources,
    ("POST", "/resources"): _add_resource,
    ("DELETE", "/resources/{id}"): _delete_resource,
    ("GET", "/organizations"): _organizations,
    ("POST", "/organizations"): _add_organization,
    ("DELETE", "/organizations/{id}"): _delete_organization,
}
