"""The command by which people deal with keys, as a person uses it."""

import json
import stat

import pytest
from eth_account import Account

from experiments.identity import main
from rlswarm_jax import identity, keystore


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.delenv(keystore.VARIABLE, raising=False)
    file = tmp_path / "passphrase"
    file.touch(0o600)
    file.write_text("correct horse\n")
    monkeypatch.setenv(keystore.FILE_VARIABLE, str(file))


def test_a_key_is_made_shown_copied_and_restored(tmp_path, capsys):
    node = tmp_path / "node"
    assert main(["new", str(node)]) == 0
    secret = identity.load(node / "node.key", "correct horse").expose_secret()
    made = capsys.readouterr().out
    account = Account.from_key(secret).address
    assert account in made and stat.S_IMODE((node / "node.key").stat().st_mode) == 0o600
    assert main(["new", str(node)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err

    assert main(["show", str(node)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(made[: made.index("key file")]) and "under a passphrase" in shown
    assert "it has signed nothing yet" in shown

    assert main(["export", str(node / "node.key"), "--to", str(tmp_path / "key.json")]) == 0
    assert "the key alone" in capsys.readouterr().out
    wallet, library = (tmp_path / "key.json").read_text(), keystore._library()  # that of wallets
    assert bytes(library.decode_keyfile_json(json.loads(wallet), b"correct horse")) == secret
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600

    assert main(["import", str(tmp_path / "key.json"), "--to", str(tmp_path / "back"), "--plain"]) == 0
    assert "no node plays with it" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "back")]) == 0
    shown = capsys.readouterr().out
    assert account in shown and "as it is" in shown and "restored without the journal" in shown
    for text in (made, shown):
        assert secret.hex() not in text and "correct horse" not in text


def test_what_cannot_be_is_one_sentence(tmp_path, capsys, monkeypatch):
    for words in (
        ["show", str(tmp_path / "nowhere")],
        ["export", str(tmp_path / "nowhere"), "--to", str(tmp_path / "x")],
        ["export", str(tmp_path), "--to", str(tmp_path / "x")],
        ["import", str(tmp_path / "nowhere"), "--to", str(tmp_path / "x")],
        ["import", str(tmp_path / "passphrase"), "--to", str(tmp_path / "x")],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, words
    monkeypatch.delenv(keystore.FILE_VARIABLE)
    assert main(["new", str(tmp_path / "node")]) == 2
    assert "it needs a passphrase" in capsys.readouterr().err and not (tmp_path / "node").exists()
    assert main(["new", str(tmp_path / "node"), "--plain"]) == 0
    with pytest.raises(SystemExit):
        main(["new", str(tmp_path / "node"), "--passphrase", "in sight of all"])
