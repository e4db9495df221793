"""Keyring: key sources, refused keys and derived keys."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from memory_core.crypto.keyring import Keyring, Secret, framed, load_keyring, new_key
from memory_core.errors import KeyMissing, UnsafeStart
from memory_core.settings.settings import Settings


def test_key_is_read_from_setting_file_or_command(tmp_path: Path) -> None:
    key = new_key()
    file = tmp_path / "master.key"
    file.write_text(f"{key}\n")
    file.chmod(0o600)
    command = shlex.join([sys.executable, "-c", f"print({key!r})"])
    places: list[dict[str, Any]] = [
        {"master_key": key},
        {"master_key_file": file},
        {"master_key_command": command},
    ]
    loaded = [load_keyring(Settings.load(**place)) for place in places]
    assert len({keyring.master.id for keyring in loaded}) == 1


def test_first_key_is_active_and_older_keys_still_open() -> None:
    new, old = new_key(), new_key()
    keyring = load_keyring(Settings.load(master_key=f"{new},{old}"))
    only_old = load_keyring(Settings.load(master_key=old))
    assert keyring.master.id != only_old.master.id
    assert keyring.secret(only_old.master.id) == only_old.master


def test_hex_and_base64_give_the_same_key() -> None:
    key = Secret(bytes(range(32)))
    assert load_keyring(Settings.load(master_key=key.value.hex())).master == key


@pytest.mark.parametrize("text", ["short", "", "A" * 44, "0" * 64, "z" * 64, "ключ" * 11])
def test_weak_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(UnsafeStart) as refusal:
        load_keyring(Settings.load(master_key=text))
    assert not text or text not in str(refusal.value)


def test_two_key_sources_are_refused() -> None:
    with pytest.raises(UnsafeStart, match="several"):
        load_keyring(Settings.load(master_key=new_key(), master_key_file=Path("elsewhere")))


@pytest.mark.parametrize("command", ["/nowhere/at-all", "false", "'unbalanced"])
def test_failing_key_command_is_refused(command: str) -> None:
    with pytest.raises(UnsafeStart, match="master_key_command failed"):
        load_keyring(Settings.load(master_key_command=command))


def test_key_file_readable_by_others_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "master.key"
    file.write_text(new_key())
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        load_keyring(Settings.load(master_key_file=file))
    assert "chmod 600" in caplog.text


def test_without_master_key_the_local_key_signs_and_nothing_encrypts(tmp_path: Path) -> None:
    file = tmp_path / "integrity.key"
    file.write_text(new_key())
    keyring = load_keyring(Settings(), file)
    assert keyring.signer is not None
    with pytest.raises(KeyMissing, match="no master key"):
        _ = keyring.master
    with pytest.raises(KeyMissing):
        keyring.secret("unknown")
    assert Keyring().signer is None


def test_master_key_signs_and_the_local_key_still_verifies(tmp_path: Path) -> None:
    file = tmp_path / "integrity.key"
    file.write_text(new_key())
    before = load_keyring(Settings(), file).signer
    keyring = load_keyring(Settings.load(master_key=new_key()), file)
    assert before is not None
    assert keyring.signer == keyring.master
    assert keyring.secret(before.id) == before


def test_each_purpose_has_its_own_key_and_repr_hides_secrets() -> None:
    secret = Secret(bytes(range(32)))
    assert len({secret.derive("a"), secret.derive("b"), secret.value}) == 3
    assert secret.value.hex() not in repr(secret)
    assert repr(secret.value) not in repr(secret)


def test_different_lists_never_encode_to_the_same_bytes() -> None:
    assert len({framed(parts) for parts in ([b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"ab", b"", b"c"])}) == 4


def test_unreadable_key_file_is_reported_without_its_path() -> None:
    with pytest.raises(UnsafeStart, match="cannot read master_key_file: No such file") as refused:
        load_keyring(Settings.load(master_key_file=Path("/nowhere/c2VjcmV0")))
    assert "c2VjcmV0" not in f"{refused.value} {refused.value.hint}"
