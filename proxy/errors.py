"""What went wrong, on whose side, and whether trying again is safe.

Every adapter (session store, Logto, Discord, upstream) translates its library's exceptions into one of these at its
edge, so that the floors above never import a client library to catch its errors. Messages name no secret, token,
cookie or address of a person: they may be logged and shown.
"""

from __future__ import annotations

from enum import Enum


class Side(Enum):
    """Whose doing an error is."""

    CLIENT = "client"
    GATEWAY = "gateway"
    UPSTREAM = "upstream"
    STORE = "store"
    LOGTO = "logto"
    DISCORD = "discord"


class PosternError(Exception):
    """Root of everything this program raises on purpose.

    `side` says whose doing it is; `retry_safe` whether the same call may be made again without doing anything twice.
    """

    side: Side = Side.GATEWAY
    retry_safe: bool = False


class MalformedRequest(PosternError):
    """The client's message cannot be read safely: answered with `status` and the connection closed (RFC 9112)."""

    side = Side.CLIENT

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class MalformedResponse(PosternError):
    """The upstream's message cannot be read safely: answered 502, its connection thrown away."""

    side = Side.UPSTREAM


class UpstreamProblem(Enum):
    """How an upstream can fail; the value is the machine-readable `reason` in logs and problem+json."""

    REFUSED = "upstream_refused"  # 502: nobody listens, no such name, no route
    RESET = "upstream_reset"  # 502: closed before a complete response
    GARBAGE = "upstream_garbage"  # 502: not HTTP/1.1
    TLS = "upstream_tls"  # 502: no TLS, or a certificate that is not accepted
    BUSY = "upstream_busy"  # 503: as many connections as the route allows, and none became free in time
    CONNECT_TIMEOUT = "upstream_connect_timeout"  # 504
    RESPONSE_TIMEOUT = "upstream_response_timeout"  # 504

    @property
    def status(self) -> int:
        """The status the client gets: 504 for slowness, 503 for a queue, else 502 (RFC 9110 15.6.3 to 15.6.5)."""
        if self is UpstreamProblem.BUSY:
            return 503
        return 504 if self in (UpstreamProblem.CONNECT_TIMEOUT, UpstreamProblem.RESPONSE_TIMEOUT) else 502


class UpstreamFailed(PosternError):
    """No usable answer from the upstream. `retry_safe` holds only when not a byte of the request left us.

    `ours`: this machine is the one at fault, with no descriptor or port left for a connection.
    """

    side = Side.UPSTREAM

    def __init__(
        self, problem: UpstreamProblem, detail: str = "", *, retry_safe: bool = False, ours: bool = False
    ) -> None:
        super().__init__(detail or problem.value)
        self.problem = problem
        self.retry_safe = retry_safe
        self.ours = ours


class CannotServe(PosternError):
    """The settings are sound, yet cannot be served by here: a port that is taken, a certificate that cannot be read."""


class StoreUnavailable(PosternError):
    """The session store cannot be asked now: 503 with Retry-After, the cookie kept, nobody signed out."""

    side = Side.STORE
    retry_safe = True


class Unsealable(PosternError):
    """A sealed value does not open: wrong key, wrong context, damaged, or never ours."""


class LogtoUnavailable(PosternError):
    """Logto is gone, slow, or speaks nonsense. Sessions go on; a sign-in gets a 502 or 503 page."""

    side = Side.LOGTO
    retry_safe = True


class LogtoRefused(PosternError):
    """Logto answered with an OAuth error (RFC 6749 5.2): `error` is its code, e.g. invalid_grant, invalid_client."""

    side = Side.LOGTO

    def __init__(self, error: str, description: str = "", status: int = 400) -> None:
        super().__init__(f"{error}: {description}" if description else error)
        self.error = error
        self.description = description
        self.status = status


class DiscordUnavailable(PosternError):
    """Discord does not answer, or not now."""

    side = Side.DISCORD
    retry_safe = True


class DiscordRefused(PosternError):
    """Discord does not take the bot's token, or the bot may not see that guild."""

    side = Side.DISCORD


class SignInProblem(Enum):
    """Why a sign-in ended without a session; the value names the text that the page shows."""

    NO_ATTEMPT = "no_attempt"  # callback without this browser's attempt cookie: other browser, expired, cookies off
    REPLAYED = "replayed"  # the attempt was already used: Back button, reload
    DENIED = "denied"  # access_denied: the person or Logto's access control said no
    LOGIN_REQUIRED = "login_required"  # prompt=none and the like
    LOGTO_ERROR = "logto_error"  # any other error parameter
    BAD_CALLBACK = "bad_callback"  # iss missing or not ours, no code
    BAD_TOKEN = "bad_token"  # the ID token or userinfo fails a check  # noqa: S105 -- a reason, not a secret
    NOT_FRESH = "not_fresh"  # a new sign-in was asked for, and Logto does not say that there was one
    EXPIRED = "expired"  # invalid_grant at the code exchange: the code lives 60 s and works once


class SignInFailed(PosternError):
    """A sign-in attempt ended. `return_to` is where it was meant to lead, when the attempt could be opened."""

    side = Side.LOGTO

    def __init__(self, problem: SignInProblem, detail: str = "", *, return_to: str | None = None) -> None:
        super().__init__(detail or problem.value)
        self.problem = problem
        self.detail = detail
        self.return_to = return_to
