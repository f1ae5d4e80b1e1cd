"""A node that goes to another machine, and what it leaves behind."""

import io
import json
import stat
import tarfile

import pytest

from configs import node as node_config
from rlswarm_jax import identity, keystore
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE, NODE_FILE
from rlswarm_jax.identity import Identity, KeyFileError
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.running import folder, moving, node

PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    monkeypatch.setenv(keystore.VARIABLE, PASSPHRASE)


def play(place):
    """What a node does with its key and journal, as far as they are concerned."""
    key, journal = place / "node.key", place / JOURNAL_FILE
    own = identity.load_or_create(key)
    with node._claimed(key, journal):
        opened = Journal(journal)
        node._claim(key, opened)
        opened.close()
    return own


@pytest.fixture
def here(tmp_path):
    """The folder of a node that has signed something."""
    place = tmp_path / "here"
    place.mkdir()
    config = node_config.get_config("smoke")
    (place / CONFIG_FILE).write_text(config.to_json_best_effort())
    play(place)
    journal = Journal(place / JOURNAL_FILE)
    journal.write(Entry(0, 7, 1, "Publish", b"what it said", 0.0))
    journal.close()
    (place / "checkpoints" / "7").mkdir(parents=True)
    (place / "checkpoints" / "7" / "weights").write_bytes(b"weights" * 1000)
    (place / NODE_FILE).write_text("{}")
    (place / "link").symlink_to("/etc/hostname")
    return place


@pytest.mark.parametrize("kept", [True, False], ids=["keystore", "plain"])
def test_a_node_moves_whole_and_is_refused_where_it_was(here, tmp_path, kept):
    own, file, there = identity.load(here / "node.key"), tmp_path / "node.tar", tmp_path / "there"
    moving.export_node(here, file, PASSPHRASE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert own.expose_secret().hex().encode() not in file.read_bytes()
    with pytest.raises(KeyFileError, match="was moved"):
        play(here)

    assert moving.import_node(file, there, PASSPHRASE, keep_keystore=kept).author == own.author
    assert play(there).author == own.author
    key = there / "node.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and keystore.is_keystore(identity.key_line(key)) == kept
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    journal = Journal(there / JOURNAL_FILE)
    assert [entry.result for entry in journal.read(0, 0)] == [b"what it said"]
    journal.close()
    assert (there / "checkpoints" / "7" / "weights").read_bytes() == b"weights" * 1000
    left_out = {NODE_FILE, "link", "node.key.partial", "config.partial.json"}
    assert not left_out & {path.name for path in there.iterdir()}
    config = node_config.get_config("smoke")
    assert folder.prepare_folder(config, there, resume=True)


def test_a_key_that_is_elsewhere_comes_along(here, tmp_path):
    elsewhere = tmp_path / "keys" / "mine"
    elsewhere.parent.mkdir()
    (here / "node.key").rename(elsewhere)
    fields = json.loads((here / CONFIG_FILE).read_text())
    fields["swarm"]["key"] = str(elsewhere)
    (here / CONFIG_FILE).write_text(json.dumps(fields))
    moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    assert identity.is_moved(elsewhere)
    moving.import_node(tmp_path / "node.tar", tmp_path / "there", PASSPHRASE, keep_keystore=False)
    play(tmp_path / "there")
    assert folder.read_config(tmp_path / "there").swarm.key == ""


def test_it_moves_back_into_another_folder(here, tmp_path):
    for place, nxt in ((here, tmp_path / "there"), (tmp_path / "there", tmp_path / "back")):
        moving.export_node(place, tmp_path / f"{nxt.name}.tar", None if place != here else PASSPHRASE)
        moving.import_node(tmp_path / f"{nxt.name}.tar", nxt, PASSPHRASE)
    play(tmp_path / "back")
    for place in (here, tmp_path / "there"):
        with pytest.raises(KeyFileError, match="was moved"):
            play(place)


def test_a_node_that_runs_does_not_move(here, tmp_path):
    with folder.lock(here), pytest.raises(folder.InUseError):
        moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    with folder.lock(here / "node.key"), pytest.raises(folder.InUseError):
        moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    play(here)


def test_a_full_disk_leaves_the_node_where_it_is(here, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "add", full)
    with pytest.raises(UsageError, match="No space left"):
        moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    assert not (tmp_path / "node.tar").exists() and not list(tmp_path.glob("*.partial*"))
    play(here)


def test_one_killed_while_it_exports_can_export_again_and_never_plays(here, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(tarfile.TarFile, "add", killed)
        patched.setattr(identity, "mark_moved", lambda key, moved=True, own=identity.mark_moved: moved and own(key))
        with pytest.raises(Killed):
            moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    with pytest.raises(KeyFileError, match="was moved"):
        play(here)
    moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    moving.import_node(tmp_path / "node.tar", tmp_path / "there", PASSPHRASE)
    play(tmp_path / "there")


def test_nothing_is_overwritten(here, tmp_path):
    (tmp_path / "node.tar").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    play(here)
    moving.export_node(here, tmp_path / "other.tar", PASSPHRASE)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        moving.import_node(tmp_path / "other.tar", here, PASSPHRASE)
    assert (tmp_path / "node.tar").read_text() == "mine"


def test_a_journal_of_another_key_moves_nowhere(here, tmp_path):
    (here / JOURNAL_FILE).unlink()
    with pytest.raises(UsageError, match="not in the journal here"):
        moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    assert not identity.is_moved(here / "node.key")


def packed(path, *members):
    """A tar file of (TarInfo's fields, content)."""
    with tarfile.open(path, "w") as tar:
        for fields, content in members:
            info = tarfile.TarInfo()
            info.size = len(content)
            for name, value in fields.items():
                setattr(info, name, value)
            tar.addfile(info, io.BytesIO(content))
    return path


KEY = keystore.one_line(
    '{"crypto": {"kdf": "pbkdf2", "kdfparams": {"c": 1, "dklen": 32, "prf": "hmac-sha256", "salt": "00"},'
    ' "cipher": "aes-128-ctr", "cipherparams": {"iv": "00"}, "ciphertext": "00", "mac": "00"}, "version": 3}'
)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([({"name": "../outside"}, b"x")], "is no node that was moved"),
        ([({"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"")], "more than files and folders"),
        ([({"name": "hard", "type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, b"")], "more than files and folders"),
        ([({"name": "pipe", "type": tarfile.FIFOTYPE}, b"")], "more than files and folders"),
        ([({"name": "null", "type": tarfile.CHRTYPE}, b"")], "more than files and folders"),
        ([], "holds no key"),
        ([({"name": "node.key"}, b"garbage"), ({"name": "config.json"}, b"{}")], "holds no secp256k1 key"),
        ([({"name": "node.key"}, KEY.encode() + b"\n"), ({"name": "config.json"}, b"{}")], "does not open it"),
    ],
    ids=["outside", "symlink", "hardlink", "pipe", "device", "empty", "no-key", "another-passphrase"],
)
def test_what_anybody_may_have_written_leaves_nothing(tmp_path, members, why):
    file, there = packed(tmp_path / "node.tar", *members), tmp_path / "in" / "there"
    with pytest.raises((UsageError, KeyFileError), match=why):
        moving.import_node(file, there, PASSPHRASE)
    assert not list((tmp_path / "in").iterdir()) and sorted(path.name for path in tmp_path.iterdir()) == [
        "in",
        "node.tar",
    ]


def test_more_than_there_is_room_for_is_not_begun(tmp_path):
    info = tarfile.TarInfo("big")
    info.size = 1 << 60
    (tmp_path / "node.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(UsageError, match="no room"):
        moving.import_node(tmp_path / "node.tar", tmp_path / "there", PASSPHRASE)
    assert not (tmp_path / "there.partial").exists()


def test_a_journal_put_beside_another_key_is_not_imported(here, tmp_path):
    moving.export_node(here, tmp_path / "node.tar", PASSPHRASE)
    other = Identity(bytes(31) + b"\7")
    key = f"{keystore.encrypt(other.expose_secret(), PASSPHRASE)}\njournal 1\n".encode()
    journal = (here / JOURNAL_FILE).read_bytes()
    members = ({"name": "node.key"}, key), ({"name": "config.json"}, b"{}"), ({"name": JOURNAL_FILE}, journal)
    with pytest.raises(UsageError, match="its journal is not that of its key"):
        moving.import_node(packed(tmp_path / "mixed.tar", *members), tmp_path / "there", PASSPHRASE)


def test_a_copy_of_the_key_alone_cannot_play_and_says_so(here, tmp_path):
    own = moving.export_key(here / "node.key", tmp_path / "key.json", PASSPHRASE)
    play(here)  # which goes on
    restored = tmp_path / "restored"
    assert moving.import_key(tmp_path / "key.json", restored, PASSPHRASE, keep_keystore=False).author == own.author
    with pytest.raises(UsageError, match=r"what the key .* has signed is not known here"):
        play(restored)
    assert identity.load_or_create(restored / "node.key").author == own.author  # for its account on a chain


def test_a_wallets_key_that_never_played_may_begin(tmp_path):
    own = Identity(bytes(31) + b"\7")
    (tmp_path / "key.json").write_text(
        json.dumps(json.loads(keystore.encrypt(own.expose_secret(), PASSPHRASE)), indent=2)
    )
    moving.import_key(tmp_path / "key.json", tmp_path / "new", PASSPHRASE, unused=True)
    assert play(tmp_path / "new").author == own.author
    with pytest.raises(UsageError, match=r"cannot open .*does not open it"):
        moving.import_key(tmp_path / "key.json", tmp_path / "other", "another")
