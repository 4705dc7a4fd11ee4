"""The two languages say the same things, and the right one is chosen."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import SignInProblem
from proxy.texts import LOCALES, TEXTS, choose_locale, has_text, text


def placeholders(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def test_both_languages_have_the_same_keys_in_the_same_order() -> None:
    assert list(TEXTS["en"]) == list(TEXTS["zh-CN"])


@pytest.mark.parametrize("key", TEXTS["en"])
def test_both_languages_fill_the_same_placeholders(key: str) -> None:
    assert placeholders(TEXTS["en"][key]) == placeholders(TEXTS["zh-CN"][key])


@pytest.mark.parametrize("key", [key for key in TEXTS["zh-CN"] if key != "value.utc"])
def test_chinese_is_chinese_and_punctuated_as_such(key: str) -> None:
    sentence = TEXTS["zh-CN"][key]
    assert re.search(r"[\u4e00-\u9fff]", sentence)
    assert not re.search(r"[\u4e00-\u9fff][,.:;?!]", sentence), "an ASCII mark behind a Chinese character"


@pytest.mark.parametrize("key", TEXTS["en"])
def test_english_is_ascii_and_plain(key: str) -> None:
    assert TEXTS["en"][key].isascii()
    assert not set(TEXTS["en"][key]) & set("<>&")


def test_every_page_has_a_title_and_a_text() -> None:
    titles = {key.removesuffix(".title") for key in TEXTS["en"] if key.endswith(".title")}
    texts = {key.removesuffix(".text") for key in TEXTS["en"] if key.endswith(".text")}
    hints = {key.removesuffix(".hint") for key in TEXTS["en"] if key.endswith(".hint")}
    assert titles == texts
    assert hints <= titles


@pytest.mark.parametrize("problem", SignInProblem)
def test_every_way_a_sign_in_ends_has_its_own_text(problem: SignInProblem) -> None:
    own = [text("en", f"{problem.value}.text")]
    others = [text("en", f"{other.value}.text") for other in SignInProblem if other is not problem]
    assert has_text(f"{problem.value}.title")
    assert not set(own) & set(others)


def test_values_are_inserted_and_never_read_as_a_template() -> None:
    assert text("en", "value.utc", time="{0.__class__}{x}") == "{0.__class__}{x} UTC"
    with pytest.raises(KeyError):
        text("en", "value.utc")
    with pytest.raises(KeyError):
        text("en", "no.such.text")
    assert not has_text("no.such.text")


@pytest.mark.parametrize(
    ("accept_language", "locale"),
    [
        ("", "en"),
        ("en", "en"),
        ("en-GB,en;q=0.9", "en"),
        ("zh", "zh-CN"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("zh-Hans", "zh-CN"),
        ("zh-TW", "zh-CN"),
        ("zh-Hant-HK;q=0.4", "zh-CN"),
        ("ZH-cn", "zh-CN"),
        ("en;q=0.5, zh;q=0.8", "zh-CN"),
        ("en;q=0.8, zh;q=0.5", "en"),
        ("zh;q=0.8, en;q=0.8", "zh-CN"),
        ("en;q=0.8, zh;q=0.8", "en"),
        ("fr, de;q=0.9", "en"),
        ("fr, zh;q=0.1", "zh-CN"),
        ("*", "en"),
        ("zh;q=0", "en"),
        ("en;q=0", "en"),
        ("zh;q=0, *", "en"),
        ("en;q=0, *;q=0.5", "zh-CN"),
        ("zh;q=0.000", "en"),
        ("zh;q=0.001", "zh-CN"),
        ("zh;q=2", "en"),  # no weight: the element is unreadable and left out
        ("zh;q=1.999, en", "zh-CN"),
        ("zh;q=abc, en;q=0.1", "en"),
        ("zha", "en"),  # Zhuang, not Chinese
        ("eng", "en"),
        (" zh-CN ; q=1 ", "zh-CN"),
        ("zh-CN\x00", "en"),
        (",,,", "en"),
        ("en;q=0.3," * 2000 + "zh", "en"),  # what is far out is not read
    ],
)
def test_language_choice(accept_language: str, locale: str) -> None:
    assert choose_locale(accept_language) == locale


@given(st.text(max_size=200))
def test_whatever_is_asked_for_gets_one_of_ours(accept_language: str) -> None:
    assert choose_locale(accept_language) in LOCALES
