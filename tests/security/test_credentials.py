"""Credentials are recognised by format and by what a text calls them, in time linear in the text."""

from __future__ import annotations

import time

import pytest

from memory_server.security.credentials import find_credentials, redact

A, D = "Ab1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV1wX2yZ3", "1234567890"
FORMATS = {
    "Amazon": "AKIA" + "QWERTYUIOP123456",
    "Google": "AIza" + A[:35],
    "Stripe": "sk_live_" + A[:24],
    "OpenAI": "sk-proj-" + A,
    "Hugging Face": "hf_" + A[:34],
    "npm": "npm_" + A[:36],
    "SendGrid": "SG." + A[:22] + "." + A,
    "age": "AGE-SECRET-KEY-1" + "QWERTY1234" * 6,
    "GitHub": "ghp_" + A[:36],
    "GitHub, fine-grained": "github_pat_" + A,
    "GitLab": "glpat-" + A[:20],
    "Slack": "xoxb-" + D + "-" + D + "-" + A[:24],
    "PyPI": "pypi-AgE" + A + A,
    "Shopify": "shpat_" + "0123456789abcdef" * 2,
    "this product": "rm_" + "01m81jxkb8kev4f14rcpcbrr37" + "_" + "A1b2" * 11,
    "JWT": "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiJhbGljZSJ9." + A,
}
NAMED = {
    "The staging database password is hunter2": "hunter2",
    "The password for the staging database is Tr0ub4dor&3.": "Tr0ub4dor&3",
    "DB_PASSWORD=s3cr3t!": "s3cr3t!",
    '{"password": "swordfish", "user": "app"}': "swordfish",
    "PASSWORD: 123456": "123456",
    "passphrase => correctHorse": "correctHorse",
    "Das Passwort lautet Sommer2024!": "Sommer2024!",
    "mot de passe : Azerty99": "Azerty99",
    "La contraseña es Gato123": "Gato123",
    "A senha é Fut3bol": "Fut3bol",
    "пароль: Qwerty12": "Qwerty12",
    "密码是abc12345": "abc12345",
    "パスワードはsakura99": "sakura99",
    "비밀번호는 hunter22 입니다": "hunter22",
    "패스워드 = hunter22!": "hunter22!",
    "비번은 Kimchi2026!jjang 이야": "Kimchi2026!jjang",
    "Hasło: Zima2024": "Zima2024",
    "ŞİFRE: kedi1234": "kedi1234",
    "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzzkey": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYzzzzzzzzkey",
    "The API key is 9f86d081884c7d659a2feaa0": "9f86d081884c7d659a2feaa0",
    "The password of the database is correct-horse-battery": "correct-horse-battery",
    "The user is app and the secret wJalrXUtnFEMI/K7MDENG/bPx1": "wJalrXUtnFEMI/K7MDENG/bPx1",
    "암호: banana77": "banana77",
    "postgres://app:s3cr3tpw@db.example/app": "s3cr3tpw",
}
ORDINARY = (
    "The password is incorrect.",
    "Reset your password to continue.",
    "Users must choose a password of at least 12 characters.",
    "password = os.environ['DB_PASSWORD']",
    'password = request.form["password"]',
    "if user.password == password: return True",
    '<input type="password" id="password" class="form-control">',
    "DB_PASSWORD=${DB_PASSWORD} and password: <your password>, password=********",
    "The token limit is 8000 and the secret of success is patience.",
    "The method of generate_password_hash is `pbkdf2:sha256`.",
    "See https://example.com/sk-learn and task-management-2024-release-notes",
    "http://localhost:8080/path and ratio 3:4@home",
    "const web = new WebClient('xoxb-your-slack-token')",
    "The password is end-to-end encrypted and case-sensitive.",
    "암호화는 AES256 방식입니다.",
    "secret santa: bring a gift under 20 euros",
)


@pytest.mark.parametrize("name", FORMATS)
def test_key_format_is_found_exactly(name: str) -> None:
    key = FORMATS[name]
    for text in (key, f"Use {key} for now.", f'KEY="{key}"'):
        (found,) = find_credentials(text)
        assert text[found.start : found.end].rstrip(".") == key


@pytest.mark.parametrize("text", NAMED)
def test_value_that_a_text_names_is_found(text: str) -> None:
    (found,) = find_credentials(f"Note. {text}\nMore.")
    assert f"Note. {text}"[found.start : found.end] == NAMED[text]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_no_credential(text: str) -> None:
    assert find_credentials(text) == []


@pytest.mark.parametrize("kind", ["RSA PRIVATE KEY", "OPENSSH PRIVATE KEY", "PRIVATE KEY", "PGP PRIVATE KEY BLOCK"])
def test_private_key_is_redacted_whole(kind: str) -> None:
    text = f"Key:\n-----BEGIN {kind}-----\nMIIEow\nAbCd\n-----END {kind}-----\nEnd."
    found = find_credentials(text)
    assert redact(text, found) == "Key:\n[redacted private key]\nEnd."


def test_half_a_private_key_is_redacted_to_the_end() -> None:
    text = "-----BEGIN PRIVATE KEY-----\nMIIEow"
    assert redact(text, find_credentials(text)) == "[redacted private key]"


def test_redaction_leaves_the_rest() -> None:
    text = f"İzmir: the password is hunter2, the key {FORMATS['Amazon']} and postgres://app:s3cr3tpw@db/app."
    assert redact(text, find_credentials(text)) == (
        "İzmir: the password is [redacted password], the key [redacted key] and"
        " postgres://app:[redacted password in a URL]@db/app."
    )


def test_number_of_findings_is_limited() -> None:
    assert len(find_credentials(f"{FORMATS['Amazon']} " * 500)) == 500


WORST = (
    "AKIA", "password ", "password is ", "password: x ", "password" + " a" * 23 + " ", "secret ", "пароль ",
    "token=a1 ", "eyJ", "eyJ" + "a" * 4096 + ".", "://a:", "sk-", "hf_", "-----BEGIN RSA PRIVATE KEY-----", "İ",
)  # fmt: skip


@pytest.mark.parametrize("unit", WORST)
def test_cost_grows_no_faster_than_the_text(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * (size // len(unit) + 1))[:size]
        began = time.process_time()
        find_credentials(text)
        return time.process_time() - began

    small = min(seconds(1 << 17) for _ in range(3))
    assert min(seconds(1 << 20) for _ in range(3)) < 8 * small * 3 + 0.02
