"""Recognises credentials in a text: keys by their published formats, and secrets that a text names.

Works in time linear in the text: it looks up fixed strings and reads a bounded number of characters behind each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

_MAX_VALUE, _MIN_VALUE = 8_192, 4
_MAX_ATTEMPTS = 10_000
Kind = Literal["key", "private key", "token", "password", "password in a URL"]


@dataclass(frozen=True, slots=True)
class Credential:
    """What looks like a credential at `start` to `end` of a text."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Format:
    """A key format: it begins with one of `anchors`, and `pattern` matches the whole."""

    kind: Kind
    anchors: tuple[str, ...]
    pattern: re.Pattern[str]


def _format(kind: Kind, anchors: str, rest: str) -> _Format:
    words = tuple(anchors.split())
    return _Format(kind, words, re.compile(f"(?:{'|'.join(map(re.escape, words))}){rest}"))


_END = r"(?![A-Za-z0-9])"
_FORMATS = (
    _format("key", "AKIA ASIA ABIA ACCA", rf"[A-Z0-9]{{16}}{_END}"),  # Amazon
    _format("key", "AIza", rf"[A-Za-z0-9_-]{{35}}{_END}"),  # Google
    _format("key", "GOCSPX-", r"[A-Za-z0-9_-]{28}"),
    _format("key", "sk_live_ sk_test_ rk_live_ rk_test_ whsec_", r"[A-Za-z0-9]{16,255}"),  # Stripe
    _format("key", "sk-", r"(?=[A-Za-z_-]{0,64}[0-9])[A-Za-z0-9_-]{20,255}"),  # OpenAI, Anthropic, others
    _format("key", "hf_ gsk_ r8_ npm_ dop_v1_ doo_v1_ tskey- SK", rf"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9]{{30,128}}{_END}"),
    _format("key", "SG.", r"[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"),
    _format("key", "AGE-SECRET-KEY-1", r"[A-Z0-9]{50,80}"),
    _format("token", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{36,255}"),  # GitHub
    _format("token", "github_pat_", r"[A-Za-z0-9_]{22,255}"),
    _format("token", "glpat- gldt- glrt- glptt-", r"[A-Za-z0-9_-]{20,64}"),  # GitLab
    _format("token", "xoxb- xoxa- xoxp- xoxr- xoxs- xapp-", r"[A-Za-z0-9-]{10,255}"),  # Slack
    _format("token", "pypi-AgE", r"[A-Za-z0-9_-]{50,255}"),
    _format("token", "shpat_ shpca_ shpss_", r"[a-fA-F0-9]{32}"),
    _format("token", "ya29.", r"[A-Za-z0-9_-]{20,255}"),
    _format("token", "rm_", r"[0-9a-z]{26}_[A-Za-z0-9_-]{40,64}"),  # this product
    _format("token", "eyJ", r"[A-Za-z0-9_-]{8,4096}\.eyJ[A-Za-z0-9_-]{8,4096}\.[A-Za-z0-9_-]{16,1024}"),  # JWT
)
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_URL = re.compile(r"://([^\s/:@'\"<>]{1,128}):([^\s/@'\"<>]{3,256})@[\w.-]")

_PASSWORDS = (
    "password passwd passphrase passcode pwd passwort kennwort contraseña senha пароль пароля 密码 密碼 口令 パスワード"
    " 비밀번호 암호 패스워드 비번 parola hasło heslo wachtwoord lösenord şifre"
).split()
_PHRASES = ("mot de passe", "clave de acceso", "كلمة المرور", "كلمة السر", "סיסמה", "पासवर्ड")
_TOKENS = ("secret", "api key", "api-key", "api_key", "apikey", "access key", "access_key", "token", "credential")
_ASSIGNED = re.compile(
    r"(?!s?[_-]?(?:hash|field|reset|policy|manager|length|file|path|input)|화)"
    r"""[^\n.:=?!;,()"'`<>]{0,48}?"""  # "… for the staging database"
    r"""(?:["'`]?\s*(?P<sign>=>|->|→|=(?!=)|[:：＝])\s*|\s(?:is|was|are|to|ist|lautet|est|es|é|jest|это)\s*:?\s+"""
    r"|\s*(?:是|为|為|は|が|는|은|이|가)\s*[:：]?\s*)"
    r"""(?P<quote>["'`«„“”‘’「]?)(?P<value>[^\s"'`«»„“”‘’「」<>\[\](){}]{4,200})(?P<after>.?)"""
)
_FOLLOWING = re.compile(r"[\s\"'`]{1,3}([A-Za-z0-9/+_=-]{24,200})")
_PHRASE = re.compile(r"[^\W\d_]{4,}(?:-[^\W\d_]{4,}){2,}")
_PLACEHOLDER = re.compile(
    r"[*xX•.…_-]+$|\$|%|os\.|process\.|getenv|env\b|none$|null$|true$|false$|str$|string|example|changeme|your|required"
    r"|optional|https?:|request\.",
    re.IGNORECASE,
)


def find_credentials(text: str) -> list[Credential]:
    """Find what looks like a credential, without overlaps, in order."""
    tried = (attempt() for attempt in islice(_attempts(text), _MAX_ATTEMPTS))
    found = sorted((one for one in tried if one), key=lambda one: (one.start, -one.end))
    kept, end = list[Credential](), 0
    for one in found:
        if one.start >= end:
            kept.append(one)
            end = one.end
    return kept


def redact(text: str, found: Sequence[Credential]) -> str:
    """Replace each credential by its kind."""
    parts, end = list[str](), 0
    for one in found:
        parts += [text[end : one.start], f"[redacted {one.kind}]"]
        end = one.end
    return "".join([*parts, text[end:]])


def _attempts(text: str) -> Iterator[Callable[[], Credential | None]]:
    """Yield a check for every place where a credential could begin."""
    for known in _FORMATS:
        for start in _positions(text, known.anchors):
            yield partial(_of_format, text, start, known)
    for start in _positions(text, ["-----BEGIN "]):
        yield partial(_private_key, text, start)
    for start in _positions(text, ["://"]):
        yield partial(_in_url, text, start)
    # The one letter that becomes two in lower case would shift all that follows.
    lower = text.replace("İ", "I").lower()
    for word in (*_PASSWORDS, *_PHRASES):
        for start in _positions(lower, [word]):
            yield partial(_named, text, start + len(word), "password", _is_password)
    for word in _TOKENS:
        for start in _positions(lower, [word]):
            yield partial(_named, text, start + len(word), "token", _is_token)


def _positions(text: str, words: Sequence[str]) -> Iterator[int]:
    for word in words:
        start = text.find(word)
        while start >= 0:
            yield start
            start = text.find(word, start + len(word))


def _of_format(text: str, start: int, known: _Format) -> Credential | None:
    if start > 0 and (text[start - 1].isalnum() or text[start - 1] == "_"):
        return None
    match = known.pattern.match(text, start)
    if match is None or "your" in match[0].lower():
        return None
    return Credential(known.kind, start, match.end())


def _private_key(text: str, start: int) -> Credential | None:
    match = _PRIVATE_KEY.match(text, start)
    if match is None:
        return None
    last = min(len(text), match.end() + _MAX_VALUE)
    end = text.find("-----END ", match.end(), last)
    close = text.find("-----", end + 9, end + 80) if end >= 0 else -1
    return Credential("private key", start, close + 5 if close >= 0 else last)


def _in_url(text: str, start: int) -> Credential | None:
    match = _URL.match(text, start)
    if match is None or _PLACEHOLDER.match(match[2]):
        return None
    return Credential("password in a URL", match.start(2), match.end(2))


def _named(text: str, start: int, kind: Kind, is_secret: Callable[[str, bool], bool]) -> Credential | None:
    """Read "… for staging is VALUE" or "…: VALUE" behind a word such as "password"."""
    match = _ASSIGNED.match(text, start)
    if match is None:
        return _following(text, start) if kind == "token" else None
    value = match["value"].rstrip(".,;:")
    is_quoted = bool(match["sign"] and match["quote"] and match["after"])
    if (
        match["after"] in {"(", "["}
        or len(value) < _MIN_VALUE
        or _PLACEHOLDER.match(value)
        or not is_secret(value, is_quoted)
    ):
        return None
    return Credential(kind, match.start("value"), match.start("value") + len(value))


def _following(text: str, start: int) -> Credential | None:
    """Read a token that follows its name directly: "secret wJalr…"."""
    match = _FOLLOWING.match(text, start)
    return Credential("token", match.start(1), match.end(1)) if match and _is_token(match[1], False) else None


def _is_password(value: str, is_quoted: bool) -> bool:
    """Anything in quotes, or three words with hyphens; else a word with a digit, a symbol or a capital inside."""
    has_digit = any(map(str.isdigit, value))
    if not has_digit and any(word in value.lower() for word in _PASSWORDS):
        return False  # an example: "newpassword"
    has_symbol = any(not char.isalnum() and char not in "-'’_./,:" for char in value)
    is_mixed = any(map(str.isupper, value[1:])) and any(map(str.islower, value))
    return is_quoted or bool(_PHRASE.fullmatch(value)) or has_symbol or is_mixed or has_digit


def _is_token(value: str, _is_quoted: bool) -> bool:
    """Long, with letters and digits as chance makes them."""
    letters, digits = sum(map(str.isalpha, value)), sum(map(str.isdigit, value))
    is_mixed = any(map(str.isupper, value)) and any(map(str.islower, value))
    return letters >= 3 and len(value) >= 16 and (digits >= 3 or (is_mixed and digits >= 1 and len(value) >= 24))
