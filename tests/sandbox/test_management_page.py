"""The page with the buttons: each does what the Management API does, and only for who has the page before them."""

from __future__ import annotations

import re

import pytest

from tests.sandbox.stand import Browser, Stand

ADA, MAX = "ada000000001", "max000000002"


def press(browser: Browser, button: str) -> int:
    """Press the button with that id on the page."""
    page = browser.get("/sandbox/people").text
    forms = re.findall(r'<form class="inline" method="post" action="([^"]+)">(.*?)</form>', page, re.DOTALL)
    action, fields = next((action, fields) for action, fields in forms if f'id="{button}"' in fields)
    data = dict(re.findall(r'name="([^"]+)" value="([^"]*)"', fields))
    return browser.client.post(action, data=data).status_code


def test_each_button_does_what_it_says(stand: Stand, browser: Browser) -> None:
    people, state = stand.state.people, stand.state
    browser.sign_in(ADA)
    assert browser.get("/sandbox/").text.count("/sandbox/people") >= 1
    assert press(browser, f"end-sessions-{ADA}") == 303
    assert (len(state.sessions), len(state.grants)) == (0, 1)
    browser.sign_in(ADA)
    assert press(browser, f"end-sessions-{ADA}-all") == 303
    assert not state.sessions
    assert press(browser, f"take-role-{ADA}-admin") == 303
    assert people[ADA].roles == ()
    state.console.organizations["acme00000001"] = {"id": "acme00000001", "name": "Acme"}
    assert press(browser, f"leave-{ADA}-acme00000001") == 303
    assert people[ADA].organization_roles == {}
    assert press(browser, f"unlink-{ADA}") == 303
    assert not people[ADA].linked
    assert press(browser, f"suspend-{ADA}") == 303
    assert people[ADA].suspended
    assert press(browser, f"suspend-{ADA}") == 303
    assert not people[ADA].suspended
    assert press(browser, f"delete-{ADA}") == 303
    assert people[ADA].deleted
    assert ADA not in browser.get("/sandbox/people").text


@pytest.mark.parametrize("token", ["", "wrong"])
def test_another_sites_form_does_nothing(stand: Stand, browser: Browser, token: str) -> None:
    answer = browser.client.post(f"/sandbox/people/{ADA}/delete", data={"xsrf": token})
    assert (answer.status_code, stand.state.people[ADA].deleted) == (403, False)
    assert "access-control-allow-origin" not in browser.get("/sandbox/people").headers


def test_what_is_not_there_is_said(stand: Stand, browser: Browser) -> None:
    xsrf = re.search(r'name="xsrf" value="([^"]+)"', browser.get("/sandbox/people").text)
    assert xsrf
    data = {"xsrf": xsrf[1]}
    assert browser.client.post(f"/sandbox/people/{ADA}/unheard-of", data=data).status_code == 404
    assert browser.client.post("/sandbox/people/nobody/delete", data=data).status_code == 404
    assert browser.client.post(f"/sandbox/people/{MAX}/leave", data={**data, "organization": "x"}).status_code == 404
