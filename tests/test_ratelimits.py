"""Discord's rate limits, learnt and kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.ratelimits import RateLimits


def told(remaining: object, after: object, bucket: str = "b") -> dict[str, str]:
    return {
        "x-ratelimit-bucket": bucket,
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset-after": str(after),
    }


def test_nothing_is_known_at_first() -> None:
    assert RateLimits().wait("p", 0) == 0


def test_an_empty_bucket_is_waited_for() -> None:
    limits = RateLimits()
    limits.learn("p", 200, told(0, 2.5), 100)
    assert limits.wait("p", 100) == 2.5
    assert limits.wait("p", 102) == 0.5
    assert limits.wait("p", 103) == 0
    assert limits.wait("other", 100) == 0


def test_what_is_sent_side_by_side_is_counted() -> None:
    limits = RateLimits()
    limits.learn("p", 200, told(2, 10), 100)
    for left in (0, 0, 10):
        assert limits.wait("p", 100) == left
        limits.spend("p", 100)
    limits.spend("p", 111)  # in a window that nothing is known of yet
    assert limits.wait("p", 111) == 0


def test_an_answer_that_was_overtaken_gives_nothing_back() -> None:
    limits = RateLimits()
    limits.learn("p", 200, told(0, 10), 100)
    limits.learn("p", 200, told(3, 10), 100)
    assert limits.wait("p", 100) == 10


def test_one_bucket_of_two_guilds_is_two() -> None:
    limits = RateLimits()
    limits.learn("guild 1", 200, told(0, 10), 100)
    limits.learn("guild 2", 200, told(5, 10), 100)
    assert limits.wait("guild 1", 100) == 10
    assert limits.wait("guild 2", 100) == 0


@pytest.mark.parametrize(
    ("headers", "wait", "elsewhere"),
    [
        ({"retry-after": "7"}, 7, 0),
        ({"retry-after": "0.25"}, 0.25, 0),
        ({"retry-after": "7", "x-ratelimit-global": "true"}, 7, 7),
        ({"retry-after": "7", **told(3, 2)}, 7, 0),
        (told(0, 2), 2, 0),
        ({}, 5, 0),
        ({"retry-after": "soon"}, 5, 0),
        ({"retry-after": "-3"}, 5, 0),
        ({"retry-after": "nan"}, 5, 0),
        ({"retry-after": "1e99"}, 3600, 0),
    ],
)
def test_429(headers: dict[str, str], wait: float, elsewhere: float) -> None:
    limits = RateLimits()
    limits.learn("p", 429, headers, 100)
    assert limits.wait("p", 100) == wait
    assert limits.wait("q", 100) == elsewhere


@pytest.mark.parametrize(
    "headers", [{}, told("x", 5), told(-1, 5), told(0, "x"), told(0, ""), {"x-ratelimit-bucket": ""}]
)
def test_what_makes_no_sense_holds_nobody_back(headers: dict[str, str]) -> None:
    limits = RateLimits()
    limits.learn("p", 200, headers, 100)
    assert limits.wait("p", 100) == 0


def test_what_is_remembered_is_bounded() -> None:
    limits = RateLimits()
    for number in range(3000):
        limits.learn(f"p{number}", 200, told(0, 10), 100)
    assert len(limits._left) <= 1024
    assert len(limits._buckets) <= 1024


def test_what_others_were_told_holds_as_well() -> None:
    limits = RateLimits()
    limits.hold("p", 3, 100)
    assert (limits.wait("p", 101), limits.wait("q", 101)) == (2, 0)
    limits.hold(None, 1e9, 100)
    assert limits.wait("q", 101) == 3599, "nobody holds us back for longer, whatever they say"
    limits.hold(None, 1, 100)
    assert limits.wait("q", 101) == 3599


@given(
    st.lists(
        st.tuples(
            st.sampled_from([200, 404, 429, 500]),
            st.dictionaries(
                st.sampled_from(
                    [
                        "retry-after",
                        "x-ratelimit-global",
                        "x-ratelimit-remaining",
                        "x-ratelimit-reset-after",
                        "x-ratelimit-bucket",
                    ]
                ),
                st.sampled_from(["0", "1", "0.5", "true", "-1", "inf", "nan", "x", "99999999999999999999"]),
            ),
        ),
        max_size=6,
    )
)
def test_no_answer_holds_back_for_ever(answers: list[tuple[int, dict[str, str]]]) -> None:
    limits = RateLimits()
    for status, headers in answers:
        limits.learn("p", status, headers, 100)
        limits.spend("p", 100)
    assert 0 <= limits.wait("p", 100) <= 3600
    assert limits.wait("p", 100 + 3601) == 0
