"""Errors name their side, and whether a retry is safe; nothing else is promised, and that is held."""

from __future__ import annotations

import pytest

from proxy import errors
from proxy.errors import (
    LogtoRefused,
    LogtoUnavailable,
    MalformedRequest,
    MalformedResponse,
    PosternError,
    Side,
    SignInFailed,
    SignInProblem,
    StoreUnavailable,
    Unsealable,
    UpstreamFailed,
    UpstreamProblem,
)


@pytest.mark.parametrize(
    ("error", "side", "retry_safe"),
    [
        (MalformedRequest(400, "why"), Side.CLIENT, False),
        (MalformedResponse("why"), Side.UPSTREAM, False),
        (UpstreamFailed(UpstreamProblem.RESET), Side.UPSTREAM, False),
        (UpstreamFailed(UpstreamProblem.REFUSED, retry_safe=True), Side.UPSTREAM, True),
        (StoreUnavailable("why"), Side.STORE, True),
        (Unsealable("why"), Side.GATEWAY, False),
        (LogtoUnavailable("why"), Side.LOGTO, True),
        (LogtoRefused("invalid_grant"), Side.LOGTO, False),
        (SignInFailed(SignInProblem.DENIED), Side.LOGTO, False),
    ],
)
def test_each_knows_whose_doing_it_is(error: PosternError, side: Side, retry_safe: bool) -> None:
    assert (error.side, error.retry_safe) == (side, retry_safe)
    assert str(error)


def test_every_error_of_the_program_is_one_of_ours() -> None:
    own = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(own) >= 9
    assert all(issubclass(error, PosternError) for error in own)


@pytest.mark.parametrize("problem", list(UpstreamProblem))
def test_slowness_is_504_no_room_503_and_the_rest_502(problem: UpstreamProblem) -> None:
    expected = 504 if "timeout" in problem.value else 503 if problem is UpstreamProblem.BUSY else 502
    assert problem.status == expected


def test_an_oauth_error_reads_as_its_code_and_description() -> None:
    assert str(LogtoRefused("invalid_client", "client authentication failed", 401)) == (
        "invalid_client: client authentication failed"
    )
    assert str(LogtoRefused("invalid_grant")) == "invalid_grant"
