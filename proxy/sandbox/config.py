"""What the stand-in Logto is set up with: what a real one has in its console and its database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Well-known on purpose: `postern sandbox` in one terminal and `postern serve` in another must agree without a handshake.
SANDBOX_APP_ID = "posternsandbox0000001"
SANDBOX_ROBOT_ID = "sandboxrobot000000001"
SANDBOX_ROBOT_SECRET = "sandbox-secret-of-no-value-00004"  # noqa: S105 -- opens nothing but this stand-in
SANDBOX_APP_SECRET = "sandbox-secret-of-no-value-00001"  # noqa: S105 -- opens nothing but this stand-in
SANDBOX_WEBHOOK_KEY = "sandbox-webhook-key-of-no-value1"
SANDBOX_ADMIN_SECRET = "sandbox-admin-of-no-value-000001"  # noqa: S105 -- opens nothing but this stand-in

ORGANIZATION_RESOURCE = "urn:logto:resource:organizations"

# Seconds. Section A of what a Logto does: access and ID token 1 h, refresh 14 d, session 14 d, code 60 s.
_HOUR = 3600.0
_DAY = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long things live, in seconds; the defaults are a fresh Logto's."""

    access: float = _HOUR
    id_token: float = _HOUR
    refresh: float = 14 * _DAY
    session: float = 14 * _DAY
    interaction: float = _HOUR
    code: float = 60.0
    tolerance: float = 15.0  # a real Logto's, on access tokens and sessions; codes and refresh tokens get none
    replay: float = 3.0  # a rotated refresh token still works this long
    rotate_after: float = 0.7  # share of its life after which a refresh token is replaced


@dataclass(frozen=True, slots=True)
class Organization:
    """An organization and what its roles may do there: role name -> permissions."""

    id: str
    name: str
    description: str | None = None
    role_scopes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


ACME = Organization(
    id="acme00000001",
    name="Acme",
    description="Acme Inc",
    role_scopes={"org-admin": ("invite:member",), "org-member": ()},
)


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """One application ("traditional web") registered in a Logto at `endpoint`.

    endpoint: base URL as browsers see it, no trailing slash; the issuer is `endpoint` + "/oidc", whatever Host is asked.
    always_issue_refresh_token: the application's setting of that name: refresh tokens that die with the Logto session.
    backchannel_logout_uri: where end_session announces itself; with `backchannel_logout_session_required` tokens carry
        `sid`. Without the URI they carry none, as recorded.
    id_token_claims: extended claims in the ID token; the default is what a fresh Logto puts there. userinfo has all.
    resources: API resource -> its scopes -> the roles that grant each.
    robot_scopes: API resource -> the scopes that the machine-to-machine application SANDBOX_ROBOT_ID has there.
    access_control_roles: when not empty, only people with one of these roles may use the application.
    trust_proxy_header: believe X-Forwarded-Proto and -Host, as Logto's TRUST_PROXY_HEADER.
    app_deleted, secret_expired: the application, or its secret, is gone.
    hook_url: where a webhook goes that is there from the start, signed with SANDBOX_WEBHOOK_KEY; default: nowhere.
    admin_endpoint: under whose name the seeded client `m-default` is known; default: the endpoint. admin_secret: its secret.
    """

    endpoint: str = "http://localhost:3001"
    client_id: str = SANDBOX_APP_ID
    client_secret: str = field(default=SANDBOX_APP_SECRET, repr=False)
    redirect_uris: tuple[str, ...] = ("http://localhost:3000/.postern/callback",)
    post_logout_redirect_uris: tuple[str, ...] = ("http://localhost:3000/.postern/signed-out",)
    always_issue_refresh_token: bool = False
    backchannel_logout_uri: str | None = None
    backchannel_logout_session_required: bool = False
    unknown_session_redirect_url: str | None = None
    id_token_claims: frozenset[str] = frozenset({"roles", "organizations", "organization_roles"})
    resources: Mapping[str, Mapping[str, tuple[str, ...]]] = field(
        default_factory=lambda: {
            "https://api.example.com": {"read:things": ("admin", "member"), "write:things": ("admin",)}
        }
    )
    robot_scopes: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"https://api.example.com": ("read:things",)}
    )
    organizations: tuple[Organization, ...] = (ACME,)
    access_control_roles: tuple[str, ...] = ()
    trust_proxy_header: bool = False
    app_deleted: bool = False
    secret_expired: bool = False
    hook_url: str = ""
    admin_endpoint: str = ""
    admin_secret: str = field(default=SANDBOX_ADMIN_SECRET, repr=False)
    lifetimes: Lifetimes = Lifetimes()

    @property
    def issuer(self) -> str:
        """The `iss` of everything: fixed, unlike the URLs in discovery, which follow the request's Host."""
        return self.endpoint + "/oidc"

    @classmethod
    def for_gateway(cls, endpoint: str, public_url: str, *, prefix: str = "/.postern") -> SandboxConfig:
        """A Logto at `endpoint` that knows the gateway at `public_url` with its own paths below `prefix`."""
        base = public_url.rstrip("/") + prefix
        return cls(
            endpoint=endpoint.rstrip("/"),
            redirect_uris=(base + "/callback",),
            post_logout_redirect_uris=(base + "/signed-out",),
            always_issue_refresh_token=True,
            backchannel_logout_uri=base + "/backchannel-logout",
            backchannel_logout_session_required=True,
            hook_url=base + "/hooks/logto",
        )
