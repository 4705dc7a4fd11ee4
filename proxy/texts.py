"""Every sentence that Postern says to people, in English and in Simplified Chinese, and the choice between the two.

A text is plain: no markup, only `{placeholder}` fields. Values that come from outside (names, addresses, paths) stand
in lines of their own next to the sentences: no name can rewrite a sentence, and no language has to bend around one.
Both tables have the same keys and the same placeholders; tests hold that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

Locale = Literal["en", "zh-CN"]

LOCALES: Final[tuple[Locale, ...]] = ("en", "zh-CN")

_ENGLISH: Final[Mapping[str, str]] = {
    "label.account": "Account",
    "label.page": "Page",
    "label.reason": "Reason",
    "label.signed_in": "Signed in",
    "label.ends": "Session ends by",
    "label.roles": "Roles",
    "label.request": "Request",
    "label.actions": "What you can do",
    "label.details": "Details",
    "value.utc": "{time} UTC",
    "action.try_again": "Try again",
    "action.reload": "Reload the page",
    "action.continue": "Continue",
    "action.sign_in": "Sign in",
    "action.sign_in_again": "Sign in again",
    "action.sign_out": "Sign out",
    "action.sign_out_everywhere": "Sign out everywhere",
    "action.sign_out_here": "Sign out here only",
    "action.end": "End",
    "action.end_others": "End all others",
    "action.stay": "Stay signed in",
    "action.switch": "Use another account",
    "action.home": "What you can open",
    "home.title": "You are signed in",
    "home.text": "This gate recognises you. Here is what your account can open.",
    "home.places": "You can open",
    "home.nothing": "Nothing here is open to this account yet. Ask whoever runs this site for access.",
    "home.sessions": "Where you are signed in",
    "home.this_one": "this one",
    "home.some_browser": "An unknown program",
    "home.since": "signed in {time} UTC",
    "home.seen": "last used {time} UTC",
    "home.end": "End the session: {name}, {address}, signed in {time} UTC",
    "home.more_sessions": "Older sessions are not listed; the button ends those, too.",
    "guest.title": "You are not signed in",
    "guest.text": "Sign in to see who you are here and what you can open.",
    "signed_in.title": "You are signed in",
    "signed_in.text": "You are being taken to your page.",
    "already.title": "You are already signed in",
    "already.text": "That sign-in link was used before or has run out, but it does not matter: your session is fine.",
    "sign_in_needed.title": "Please sign in first",
    "sign_in_needed.text": "This needs a signed-in account.",
    "sign_in_needed.hint": "If you were sending a form, it has not been sent: go back and copy what you wrote.",
    "sign_in_too_old.title": "Please sign in again",
    "sign_in_too_old.text": "You are signed in, but this asks for a sign-in of the last minutes.",
    "sign_in_too_old.hint": "If you were sending a form, it has not been sent: go back and copy what you wrote.",
    "sign_out.title": "Sign out?",
    "sign_out.text": "This ends your session here and at the sign-in service.",
    "sign_out_of_app.title": "Sign out?",
    "sign_out_of_app.text": "This ends your session here. The sign-in service will still know you.",
    "sign_out_refused.title": "That was not your click",
    "sign_out_refused.text": "Another site may have tried to sign you out. You are still signed in.",
    "sign_out_refused.hint": "If you do want to sign out, use the button on the sign-out page.",
    "end_refused.title": "That was not your click",
    "end_refused.text": "Another site may have tried to end your sessions. None has been ended.",
    "end_refused.hint": "If you do want to end one, use the buttons on the page about your account.",
    "signed_out.title": "You are signed out",
    "signed_out.text": "Your session here has ended. On a shared computer, close the browser as well.",
    "signed_out_of_app.title": "You are signed out here",
    "signed_out_of_app.text": "Your session here has ended. The sign-in service knows you still.",
    "signed_out_of_app.hint": "On a shared computer, sign out everywhere instead, or close the browser as well.",
    "signed_out_here.title": "You are signed out here",
    "signed_out_here.text": "Your session here has ended. The sign-in service gave no answer and may know you still.",
    "signed_out_here.hint": "On a shared computer, close the browser as well.",
    "invalid_credential.title": "This token or password is not valid",
    "invalid_credential.text": "The access token or app password is not valid here, or no longer.",
    "logto_unavailable.title": "One moment, please",
    "logto_unavailable.text": "The token cannot be checked right now. Try again in a minute.",
    "forbidden.title": "This is not open to you",
    "forbidden.text": "You are signed in, but your account may not open this page.",
    "forbidden.hint": "If you have another account, use it. Should this one have access, ask whoever runs this site.",
    "forbidden.no_rule": "No rule lets this account in.",
    "forbidden.deny_rule": "A rule keeps this account out.",
    "forbidden.not_a_member": "This is for the members of an organization, and this account is not one of them.",
    "forbidden.other": "The rules of this page say no.",
    "forbidden_guest.title": "This is not open to you",
    "forbidden_guest.text": "The rules of this page do not let this request in, and signing in would not change that.",
    "foreign_origin.title": "Refused: asked by another site",
    "foreign_origin.text": "Another site tried to open a live connection with your session. It was refused.",
    "not_found.title": "Nothing here",
    "not_found.text": "There is no page at this address. Check it for a typing mistake.",
    "method_not_allowed.title": "That does not work here",
    "method_not_allowed.text": "This address exists, but it cannot be used in this way.",
    "ambiguous.title": "This address is unclear",
    "ambiguous.text": "It can be read in more than one way, and the readings have different permissions.",
    "ambiguous.hint": "Remove doubled slashes, dots and encoded characters from the path, then try again.",
    "loop.title": "This request runs in a circle",
    "loop.text": "What it was forwarded to has sent it back here. Whoever runs this site has to change where this leads.",
    "bad_request.title": "This request makes no sense",
    "bad_request.text": "What arrived here is not a request that can be answered safely.",
    "store_down.title": "One moment, please",
    "store_down.text": "Your session cannot be checked right now. You are not signed out. Try again in a minute.",
    "membership_unknown.title": "One moment, please",
    "membership_unknown.text": "This is for members of a Discord server, and Discord does not say now who is one. You are still "
    "signed in. Try again in a minute.",
    "upstream_down.title": "This app does not answer",
    "upstream_down.text": "You may open it, but the app at this address is not working. Try again in a minute.",
    "upstream_tls.title": "This app cannot be reached safely",
    "upstream_tls.text": "You may open it, but the app at this address did not prove who it is. Nothing was sent to it. "
    "Whoever runs this site has to look at its certificate.",
    "upstream_busy.title": "This app is busy",
    "upstream_busy.text": "You may open it, but too many requests are waiting for it. Try again in a minute.",
    "upstream_slow.title": "This app takes too long",
    "upstream_slow.text": "You may open it, but the app at this address did not answer in time. Try again later.",
    "logto_down.title": "Sign-in is not available",
    "logto_down.text": "The sign-in service cannot be reached right now. Nothing is wrong with your account.",
    "logto_down.hint": "Whoever is signed in already can go on working. Try again in a minute.",
    "logto_refused.title": "Sign-in is not set up correctly",
    "logto_refused.text": "The sign-in service refuses to talk to this gate. Trying again will not help.",
    "logto_refused.hint": "Tell whoever runs this site: the reason is in the log under the request number below.",
    "overloaded.title": "Too busy right now",
    "overloaded.text": "More is being asked here than can be answered at once. Try again in a moment.",
    "error.title": "Something went wrong here",
    "error.text": "That is not your doing. Try again, or tell whoever runs this site the request number below.",
    "no_attempt.title": "This sign-in cannot be finished",
    "no_attempt.text": "It was started in another browser, took longer than ten minutes, or cookies are turned off.",
    "no_attempt.hint": "Start again from here, and allow cookies for this site.",
    "replayed.title": "This sign-in was used already",
    "replayed.text": "Each sign-in works once. The Back button or a reload brings you to this page.",
    "denied.title": "You were not let in",
    "denied.text": "The sign-in service says that this account may not use this site, or the sign-in was cancelled.",
    "login_required.title": "Please sign in",
    "login_required.text": "The sign-in service does not know you any more and wants to see you again.",
    "logto_error.title": "The sign-in service reports a problem",
    "logto_error.text": "It ended the sign-in with an error. Try again; if it stays, tell whoever runs this site.",
    "bad_callback.title": "This sign-in answer is not valid",
    "bad_callback.text": "What came back is not from the sign-in service of this site, or a part of it is missing.",
    "bad_token.title": "This sign-in could not be verified",
    "bad_token.text": "The proof of who you are failed a check, so it was thrown away.",
    "bad_token.hint": "If it happens again, tell whoever runs this site.",
    "not_fresh.title": "That was not a new sign-in",
    "not_fresh.text": "This asks for a new sign-in, and the sign-in service did not confirm that there was one.",
    "not_fresh.hint": "If it happens again, tell whoever runs this site: the two clocks may differ.",
    "expired.title": "This sign-in has run out",
    "expired.text": "It took a little too long on the way back. Signing in again takes only a moment.",
}

_CHINESE: Final[Mapping[str, str]] = {
    "label.account": "账号",
    "label.page": "页面",
    "label.reason": "原因",
    "label.signed_in": "登录时间",
    "label.ends": "会话最晚结束",
    "label.roles": "角色",
    "label.request": "请求编号",
    "label.actions": "可以进行的操作",
    "label.details": "详细信息",
    "value.utc": "{time} UTC",
    "action.try_again": "重试",
    "action.reload": "重新加载页面",
    "action.continue": "继续",
    "action.sign_in": "登录",
    "action.sign_in_again": "重新登录",
    "action.sign_out": "退出登录",
    "action.sign_out_everywhere": "全部退出",
    "action.sign_out_here": "仅在此处退出",
    "action.end": "结束",
    "action.end_others": "结束所有其他会话",
    "action.stay": "保持登录",
    "action.switch": "使用其他账号",
    "action.home": "查看可访问的应用",
    "home.title": "您已登录",
    "home.text": "我们认出了您。以下是您的账号可以访问的内容。",
    "home.places": "您可以访问",
    "home.nothing": "此账号目前还不能访问任何内容。请联系网站管理员开通权限。",
    "home.sessions": "您的登录会话",
    "home.this_one": "当前会话",
    "home.some_browser": "未知程序",
    "home.since": "登录于 {time} UTC",
    "home.seen": "最近使用 {time} UTC",
    "home.end": "结束会话：{name}，{address}，登录于 {time} UTC",
    "home.more_sessions": "更早的会话未列出；该按钮也会结束它们。",
    "guest.title": "您尚未登录",
    "guest.text": "登录后即可查看您的身份以及可以访问的内容。",
    "signed_in.title": "您已登录",
    "signed_in.text": "正在前往您的页面。",
    "already.title": "您已经登录",
    "already.text": "该登录链接已被使用或已过期，但没有关系：您的会话一切正常。",
    "sign_in_needed.title": "请先登录",
    "sign_in_needed.text": "此操作需要先登录账号。",
    "sign_in_needed.hint": "如果您正在提交表单，内容尚未发送：请返回上一页并复制您填写的内容。",
    "sign_in_too_old.title": "请重新登录",
    "sign_in_too_old.text": "您已登录，但此操作要求您在最近几分钟内登录过。",
    "sign_in_too_old.hint": "如果您正在提交表单，表单尚未提交：请返回并复制您填写的内容。",
    "sign_out.title": "要退出登录吗？",
    "sign_out.text": "这将结束您在此处以及登录服务中的会话。",
    "sign_out_of_app.title": "要退出登录吗？",
    "sign_out_of_app.text": "这将结束您在此处的会话。登录服务仍会记得您。",
    "sign_out_refused.title": "这不是您的操作",
    "sign_out_refused.text": "可能有其他网站试图让您退出登录，因此未执行任何操作。您仍处于登录状态。",
    "sign_out_refused.hint": "如果您确实想退出，请使用退出登录页面上的按钮。",
    "end_refused.title": "这不是您的操作",
    "end_refused.text": "可能有其他网站试图结束您的会话。没有任何会话被结束。",
    "end_refused.hint": "如果您确实想结束某个会话，请使用账号页面上的按钮。",
    "signed_out.title": "您已退出登录",
    "signed_out.text": "您在此处的会话已结束。如果使用的是公用电脑，请同时关闭浏览器。",
    "signed_out_of_app.title": "您已在此处退出登录",
    "signed_out_of_app.text": "您在此处的会话已结束，登录服务仍记得您。",
    "signed_out_of_app.hint": "如果使用的是公用电脑，请改为全部退出，或者同时关闭浏览器。",
    "signed_out_here.title": "您已在此处退出登录",
    "signed_out_here.text": "您在此处的会话已结束，但登录服务暂时无法连接，它可能仍记得您。",
    "signed_out_here.hint": "如果使用的是公用电脑，请同时关闭浏览器。",
    "invalid_credential.title": "该令牌或密码无效",
    "invalid_credential.text": "此处不接受该访问令牌或应用密码，或者它已失效。",
    "logto_unavailable.title": "请稍候",
    "logto_unavailable.text": "目前无法验证该令牌，请稍后再试。",
    "forbidden.title": "您没有访问权限",
    "forbidden.text": "您已登录，但您的账号不能打开此页面。",
    "forbidden.hint": "如果您有其他账号，请换用该账号。如果您应当拥有权限，请联系网站管理员。",
    "forbidden.no_rule": "没有规则允许此账号访问。",
    "forbidden.deny_rule": "有规则禁止此账号访问。",
    "forbidden.not_a_member": "此页面仅对某个组织的成员开放，而此账号不是其成员。",
    "forbidden.other": "此页面的访问规则不允许。",
    "forbidden_guest.title": "您没有访问权限",
    "forbidden_guest.text": "此页面的访问规则不允许此请求，登录也不会改变这一点。",
    "foreign_origin.title": "已拒绝来自其他网站的请求",
    "foreign_origin.text": "其他网站试图使用您的会话建立实时连接，已被拒绝。",
    "not_found.title": "这里什么也没有",
    "not_found.text": "此地址没有对应的页面。请检查地址是否输入有误。",
    "method_not_allowed.title": "此处不支持该操作",
    "method_not_allowed.text": "此地址存在，但不能以这种方式使用。",
    "ambiguous.title": "此地址含义不明确",
    "ambiguous.text": "它可以有多种解读，而不同解读的访问权限并不相同。",
    "ambiguous.hint": "请去掉路径中重复的斜杠、点和经过编码的字符，然后重试。",
    "loop.title": "此请求陷入循环",
    "loop.text": "请求被转发之后又回到了这里。需要由网站管理员修改其转发目标。",
    "bad_request.title": "无法理解此请求",
    "bad_request.text": "收到的内容不是可以安全处理的请求。",
    "store_down.title": "请稍候",
    "store_down.text": "目前无法核对您的会话。您并未被退出登录。请稍后重试。",
    "membership_unknown.title": "请稍候",
    "membership_unknown.text": "此页面仅对某个 Discord 服务器的成员开放，而目前无法确认成员身份。"
    "您仍处于登录状态，请一分钟后再试。",
    "upstream_down.title": "该应用没有响应",
    "upstream_down.text": "您有权打开它，但此地址背后的应用目前无法工作。请稍后重试。",
    "upstream_tls.title": "无法安全地连接该应用",
    "upstream_tls.text": "您有权打开它，但此地址背后的应用未能证明自己的身份，因此没有向它发送任何内容。请网站管理员检查其证书。",
    "upstream_busy.title": "该应用正忙",
    "upstream_busy.text": "您有权打开它，但等待它处理的请求太多。请稍后重试。",
    "upstream_slow.title": "该应用响应太慢",
    "upstream_slow.text": "您有权打开它，但此地址背后的应用未能及时响应。请稍后重试。",
    "logto_down.title": "暂时无法登录",
    "logto_down.text": "目前无法连接登录服务。您的账号没有任何问题。",
    "logto_down.hint": "已登录的用户可以继续使用。请稍后重试。",
    "logto_refused.title": "登录配置有误",
    "logto_refused.text": "登录服务拒绝了本站的请求，重试也无济于事。",
    "logto_refused.hint": "请将下方的请求编号告知网站管理员，日志中记有原因。",
    "overloaded.title": "目前过于繁忙",
    "overloaded.text": "当前请求过多，暂时无法处理。请稍后重试。",
    "error.title": "出了点问题",
    "error.text": "这不是您的错。请重试；如果仍不行，请将下方的请求编号告知网站管理员。",
    "no_attempt.title": "无法完成此次登录",
    "no_attempt.text": "登录可能是在其他浏览器中开始的、超过了十分钟，或者浏览器禁用了 Cookie。",
    "no_attempt.hint": "请从这里重新开始，并允许本站使用 Cookie。",
    "replayed.title": "此次登录已使用过",
    "replayed.text": "每次登录只能使用一次。点击后退按钮或重新加载会回到此页面。",
    "denied.title": "未获准进入",
    "denied.text": "登录服务表示此账号不能使用本站，或者登录已被取消。",
    "login_required.title": "请登录",
    "login_required.text": "登录服务已不再识别您，需要您重新登录。",
    "logto_error.title": "登录服务报告了问题",
    "logto_error.text": "登录服务以错误结束了此次登录。请重试；如果仍不行，请联系网站管理员。",
    "bad_callback.title": "此登录应答无效",
    "bad_callback.text": "返回的内容并非来自本站的登录服务，或者缺少了一部分。",
    "bad_token.title": "无法验证此次登录",
    "bad_token.text": "您的身份证明未通过检查，已被丢弃。",
    "bad_token.hint": "如果再次发生，请联系网站管理员。",
    "not_fresh.title": "这不是一次新的登录",
    "not_fresh.text": "此操作要求重新登录，但登录服务未确认您刚刚登录过。",
    "not_fresh.hint": "如果再次出现，请告知网站管理员：双方的时钟可能不一致。",
    "expired.title": "此次登录已过期",
    "expired.text": "返回途中用时稍长。重新登录只需片刻。",
}

TEXTS: Final[Mapping[Locale, Mapping[str, str]]] = {"en": _ENGLISH, "zh-CN": _CHINESE}

# One element of Accept-Language (RFC 9110 12.5.4, RFC 4647 2.1): a language range, perhaps with a weight.
_RANGE: Final = re.compile(
    r"\s*(\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)\s*(?:;\s*[qQ]\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?\Z"
)


def text(locale: Locale, key: str, **values: str) -> str:
    """Return the text `key` in `locale` with its placeholders filled. KeyError for an unknown key or missing value."""
    return TEXTS[locale][key].format_map(values)


def has_text(key: str) -> bool:
    """Whether there is a text `key`; some pages have a hint, others do not."""
    return key in _ENGLISH


def choose_locale(accept_language: str) -> Locale:
    """Choose the language that suits an Accept-Language field best: English when it names neither of ours.

    Every kind of Chinese gets the Chinese we have: zh-TW readers read Simplified more easily than English. An exact
    weight of 0 means "not this one" (RFC 9110 12.4.2); between equal weights the one named first wins.
    """
    ranked: dict[Locale, tuple[float, int]] = {}
    anything: tuple[float, int] | None = None
    for position, element in enumerate(accept_language[:1024].split(",")):
        parsed = _RANGE.match(element)
        if parsed is None:
            continue
        weight = (min(float(parsed[2] or "1"), 1.0), -position)
        primary = parsed[1].lower().partition("-")[0]
        if primary == "*":
            anything = weight
        for locale in LOCALES:
            if primary == locale.partition("-")[0].lower():
                ranked[locale] = max(weight, ranked.get(locale, weight))
    best = max(LOCALES, key=lambda locale: ranked.get(locale) or anything or (0.0, 0))
    chosen = ranked.get(best) or anything
    return best if chosen is not None and chosen[0] > 0 else "en"
