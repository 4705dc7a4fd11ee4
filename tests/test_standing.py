"""When a server is asked last, for how long, and when it may prove itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.standing import FAILURES_IN_A_ROW, FIRST_PAUSE, LONGEST_PAUSE, TRIAL, Standing


def test_a_new_server_is_asked_as_usual() -> None:
    assert not Standing().aside(0.0)


def test_a_server_that_cannot_be_reached_is_set_aside_at_once() -> None:
    standing = Standing()
    assert standing.failed(100.0, unreachable=True) == FIRST_PAUSE
    assert standing.aside(100.0)
    assert standing.aside(100.0 + FIRST_PAUSE - 0.01)
    assert not standing.aside(100.0 + FIRST_PAUSE)


def test_a_broken_answer_alone_changes_nothing() -> None:
    standing = Standing()
    for _ in range(FAILURES_IN_A_ROW - 1):
        assert standing.failed(100.0, unreachable=False) is None
        assert not standing.aside(100.0)
    assert standing.failed(100.0, unreachable=False) == FIRST_PAUSE
    assert standing.aside(100.0)


def test_an_answer_in_between_forgives_all_failures() -> None:
    standing = Standing()
    for _ in range(10):
        for _ in range(FAILURES_IN_A_ROW - 1):
            assert standing.failed(0.0, unreachable=False) is None
        assert not standing.answered()
    assert not standing.aside(0.0)


def test_pauses_grow_up_to_a_bound_and_begin_anew_after_an_answer() -> None:
    standing, now, pauses = Standing(), 0.0, []
    for _ in range(8):
        pause = standing.failed(now, unreachable=True)
        assert pause is not None
        pauses.append(pause)
        now += pause
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    assert standing.answered()
    assert standing.failed(now, unreachable=True) == FIRST_PAUSE


def test_failures_of_requests_that_were_under_way_do_not_prolong_a_pause() -> None:
    standing = Standing()
    standing.failed(0.0, unreachable=True)
    for _ in range(50):
        assert standing.failed(0.5, unreachable=True) is None
    assert not standing.aside(FIRST_PAUSE)


def test_after_a_pause_one_request_goes_and_the_others_stay_away() -> None:
    standing = Standing()
    standing.failed(0.0, unreachable=True)
    standing.asked(FIRST_PAUSE)
    assert standing.aside(FIRST_PAUSE)
    assert standing.back_at() == FIRST_PAUSE + TRIAL
    standing.answered()
    assert not standing.aside(FIRST_PAUSE)


def test_a_failed_trial_is_followed_by_a_longer_pause() -> None:
    standing = Standing()
    standing.failed(0.0, unreachable=True)
    standing.asked(FIRST_PAUSE)
    assert standing.failed(FIRST_PAUSE + 0.1, unreachable=False) == 2 * FIRST_PAUSE  # on trial one failure is enough
    assert standing.back_at() == pytest.approx(FIRST_PAUSE + 0.1 + 2 * FIRST_PAUSE)


def test_a_trial_that_comes_to_nothing_does_not_keep_others_away_for_ever() -> None:
    standing = Standing()
    standing.failed(0.0, unreachable=True)
    standing.asked(FIRST_PAUSE)
    assert not standing.aside(FIRST_PAUSE + TRIAL)


def test_asking_a_server_in_good_standing_is_no_trial() -> None:
    standing = Standing()
    standing.asked(5.0)
    assert not standing.aside(5.0)


def test_asking_during_a_pause_is_no_trial() -> None:
    standing = Standing()
    standing.failed(0.0, unreachable=True)
    standing.asked(0.5)  # every server of the route is set aside
    assert not standing.aside(FIRST_PAUSE)


def test_what_the_health_check_says_counts_whatever_the_requests_say() -> None:
    standing = Standing()
    standing.healthy = False
    standing.answered()
    assert standing.aside(0.0)
    standing.healthy = True
    assert not standing.aside(0.0)


class AnyHistory(RuleBasedStateMachine):
    """Whatever happens, in whatever order: a pause is never longer than the longest, and always ends."""

    def __init__(self) -> None:
        super().__init__()
        self.standing = Standing()
        self.now = 0.0

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(unreachable=st.booleans())
    def fails(self, unreachable: bool) -> None:
        pause = self.standing.failed(self.now, unreachable=unreachable)
        assert pause is None or FIRST_PAUSE <= pause <= LONGEST_PAUSE
        if unreachable:
            assert self.standing.aside(self.now)

    @rule()
    def asked(self) -> None:
        self.standing.asked(self.now)

    @rule()
    def answers(self) -> None:
        self.standing.answered()
        assert not self.standing.aside(self.now)
        assert self.standing.failures == 0

    @invariant()
    def comes_back(self) -> None:
        assert not self.standing.aside(self.now + LONGEST_PAUSE)


TestAnyHistory = AnyHistory.TestCase


@given(st.integers(1, 2000))
def test_any_number_of_pauses_has_a_length(number: int) -> None:
    standing, now = Standing(), 0.0
    for _ in range(number):
        now += standing.failed(now, unreachable=True) or 0.0
    assert now <= number * LONGEST_PAUSE
