import json
import re
import stat
import subprocess
import sys

import pytest

from rlswarm_jax import identity, keystore
from rlswarm_jax.identity import Identity, KeyFileError, create, load_or_create
from rlswarm_jax.keystore import KeystoreError

# the test vector of the Web3 Secret Storage definition: its key under "testpassword"
VECTOR = """{"crypto": {"cipher": "aes-128-ctr", "cipherparams": {"iv": "6087dab2f9fdbbfaddc31a909735c1e6"},
"ciphertext": "5318b4d5bcd28de64ee5559e671353e16f075ecae9f99c7a79a38af5f869aa46", "kdf": "pbkdf2",
"kdfparams": {"c": 262144, "dklen": 32, "prf": "hmac-sha256",
"salt": "ae3cd4e7013836a3df6bd7241b12db061dbe2c6785853cce422d148a624ce0bd"},
"mac": "517ead924a9d0dc3124507e3393d175ce3ff7c1e96529c6c555ce9e51205e9b2"},
"id": "3198bc9c-6672-5ab3-d995-4942343ae5b6", "version": 3}"""
SECRET = bytes.fromhex("7a28b5ba57c53603b0b07b56bba752f7784bf506fa95edc395f5cf6c7514fe9d")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    for name in (keystore.VARIABLE, keystore.FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_the_published_vector_opens():
    assert keystore.decrypt(VECTOR, "testpassword") == SECRET


def test_what_was_encrypted_opens_with_its_passphrase_alone():
    made = keystore.encrypt(SECRET, "correct horse")
    assert "\n" not in made and SECRET.hex() not in made and json.loads(made)["version"] == 3
    assert keystore.decrypt(made, "correct horse") == SECRET
    with pytest.raises(KeystoreError, match="does not open it"):
        keystore.decrypt(made, "correct horse ")


def test_opening_one_leaves_pythons_limit_on_recursion_as_it_was():
    """A decoder that recurses in C ends the process where Python would not (chain/library.py)."""
    script = (
        "import sys; limit = sys.getrecursionlimit()\n"
        "from rlswarm_jax import keystore; keystore.KDF_WORK = 2\n"
        "import rlswarm_jax.chain.library\n"  # which stands in for it, for others
        "assert keystore.decrypt(keystore.encrypt(b'\\1' * 32, 'x'), 'x') == b'\\1' * 32\n"
        "assert sys.getrecursionlimit() == limit\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def other(**params):
    found = json.loads(VECTOR)
    found["crypto"]["kdfparams"] |= params
    return json.dumps(found)


def scrypt(**params):
    found = json.loads(VECTOR)
    found["crypto"]["kdf"] = "scrypt"
    found["crypto"]["kdfparams"] = {"dklen": 32, "n": 2, "r": 8, "p": 1, "salt": "00"} | params
    return json.dumps(found)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        "7" * 64,
        '{"version": 3}',
        VECTOR.replace('"version": 3', '"version": 4'),
        VECTOR.replace("ciphertext", "text"),
        VECTOR.replace("aes-128-ctr", "none").replace("cipherparams", "x"),
        VECTOR.replace("5318b4d5", "zzzzzzzz"),
        other(c="262144"),
        other(c=-1),
        other(c=True),
        other(dklen=16),
        scrypt(n=3),
        "[" * 4000,
    ],
    ids=lambda text: re.sub(r"\W+", " ", text)[-25:],
)
def test_what_is_no_keystore_is_one_sentence(text):
    with pytest.raises(KeystoreError, match=r"it is no keystore|does not open it"):
        keystore.decrypt(text, "testpassword")


@pytest.mark.parametrize("text", [other(c=1 << 40), scrypt(n=1 << 40), scrypt(p=1 << 30), scrypt(r=1 << 24)])
def test_one_that_would_take_all_memory_or_all_day_is_not_opened(text):
    with pytest.raises(KeystoreError, match="more time or memory"):
        keystore.decrypt(text, "testpassword")


def written(path, text, mode=0o600):
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_passphrase_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(KeystoreError, match="it needs a passphrase"):
        keystore.passphrase("a key")
    monkeypatch.setenv(keystore.VARIABLE, "from the environment")
    assert keystore.passphrase("a key") == "from the environment"
    monkeypatch.setenv(keystore.FILE_VARIABLE, str(written(tmp_path / "one", "of a file\n")))
    assert keystore.passphrase("a key") == "of a file"
    assert keystore.passphrase("a key", written(tmp_path / "two", "given  \r\nmore")) == "given  "
    keystore.forget()
    with pytest.raises(KeystoreError, match="it needs a passphrase"):
        keystore.passphrase("a key")


def test_a_passphrase_that_keeps_nobody_out_is_refused(tmp_path, monkeypatch):
    with pytest.raises(KeystoreError, match="can be read by others"):
        keystore.passphrase("a key", written(tmp_path / "open", "long enough", 0o644))
    with pytest.raises(KeystoreError, match="cannot read the passphrase's file"):
        keystore.passphrase("a key", tmp_path / "nowhere")
    monkeypatch.setenv(keystore.VARIABLE, "short")
    assert keystore.passphrase("an old key") == "short"
    with pytest.raises(KeystoreError, match="at least 8 characters"):
        keystore.passphrase("a new key", new=True)


def test_a_new_one_is_asked_for_twice(monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    said = ["one phrase", "one phrase", "one phrase", "another phrase"]
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("getpass.getpass", lambda prompt: said.pop(0))
    assert keystore.passphrase("a key", new=True) == "one phrase"
    with pytest.raises(KeystoreError, match="differ"):
        keystore.passphrase("a key", new=True)


# --- key files


def test_a_key_file_under_a_passphrase_is_the_same_identity_and_remembers_its_journal(tmp_path, monkeypatch):
    path, own = tmp_path / "node.key", Identity(SECRET)
    create(path, own, "correct horse")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and SECRET.hex() not in path.read_text()
    monkeypatch.setenv(keystore.VARIABLE, "correct horse")
    assert load_or_create(path).author == own.author and identity.journal_of(path) is None
    identity.mark(path, 17)
    assert load_or_create(path).author == own.author and identity.journal_of(path) == 17
    monkeypatch.setenv(keystore.VARIABLE, "wrong horse")
    with pytest.raises(KeyFileError, match="this passphrase does not open it") as caught:
        load_or_create(path)
    assert "horse" not in str(caught.value)


def test_a_moved_key_is_refused_until_that_is_taken_back(tmp_path):
    path = tmp_path / "node.key"
    own = load_or_create(path)
    identity.mark(path, 5)
    before = path.read_bytes()
    for _ in range(2):
        identity.mark_moved(path)
    with pytest.raises(KeyFileError, match="was moved to another machine"):
        load_or_create(path)
    assert identity.load(path).author == own.author and path.read_text().count("moved") == 1
    identity.mark_moved(path, False)
    assert path.read_bytes() == before and load_or_create(path).author == own.author


def test_a_line_that_a_kill_cut_off_says_nothing_and_spoils_nothing(tmp_path):
    path = tmp_path / "node.key"
    create(path, Identity(SECRET))
    with path.open("a") as file:
        file.write("journal 12")
    assert identity.journal_of(path) is None
    identity.mark(path, 1234)
    assert identity.journal_of(path) == 1234
    assert load_or_create(path).author == Identity(SECRET).author


def test_a_key_written_by_hand_without_an_end_of_line_keeps_what_is_known_of_it(tmp_path):
    path = written(tmp_path / "node.key", SECRET.hex())
    identity.mark(path, 99)
    assert load_or_create(path).author == Identity(SECRET).author and identity.journal_of(path) == 99
