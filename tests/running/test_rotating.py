"""A node that gets another key, as the one who runs it sees it."""

from itertools import pairwise

import pytest

from configs import node as node_config
from experiments.identity import main
from rlswarm_jax import identity, keystore
from rlswarm_jax.errors import UsageError
from rlswarm_jax.files import CONFIG_FILE, JOURNAL_FILE
from rlswarm_jax.identity import KeyFileError
from rlswarm_jax.journal import Entry, Journal
from rlswarm_jax.records import rotations
from rlswarm_jax.running import moving, node, rotating

PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(keystore, "KDF_WORK", 2)
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setenv(keystore.VARIABLE, PASSPHRASE)


def play(place, rounds=()):
    """What a node does with its key and journal, as far as they are concerned."""
    place.mkdir(exist_ok=True)
    if not (place / CONFIG_FILE).exists():
        (place / CONFIG_FILE).write_text(node_config.get_config("smoke").to_json_best_effort())
    key, journal = place / "node.key", place / JOURNAL_FILE
    own = identity.load_or_create(key)
    with node._claimed(key, journal):
        opened = Journal(journal)
        node._claim(key, opened)
        for round_ in rounds:
            opened.write(Entry(0, round_, 1, "Publish", b"", 0.0))
        opened.close()
    return own


def rotate(place, to, **given):
    return rotating.rotate(place, to, given.get("swarm", ""), given.get("passphrase"), given.get("new"))


def test_the_new_key_has_the_old_ones_word_and_the_old_one_does_not_play_again(tmp_path):
    old = play(tmp_path / "old", rounds=range(7))
    own, round_ = rotate(tmp_path / "old", tmp_path / "new")
    assert round_ == 7 and own.author != old.author
    with pytest.raises(UsageError, match=f"was given up for {own.peer_id}"):
        play(tmp_path / "old")
    assert play(tmp_path / "new").author == own.author
    swarm = node_config.get_config("smoke").swarm.name
    assert rotating.earlier_keys(tmp_path / "new" / "node.key", own.author, swarm) == (
        rotations.announce(old, own.author, swarm, 7),
    )
    assert rotating.earlier_keys(tmp_path / "new" / "node.key", own.author, "another") == ()
    assert identity.load_or_create(tmp_path / "old" / "node.key").author == old.author  # for its account on a chain


def test_a_chain_of_keys_is_kept_also_when_the_node_moves(tmp_path):
    names = ["a", "b", "c"]
    keys = [play(tmp_path / "a", rounds=[3])]
    for place, nxt in pairwise(names):
        keys.append(rotate(tmp_path / place, tmp_path / nxt, new=PASSPHRASE)[0])
        play(tmp_path / nxt, rounds=[10 * len(keys)])
    moving.export_node(tmp_path / "c", tmp_path / "c.tar", None)
    moving.import_node(tmp_path / "c.tar", tmp_path / "there", PASSPHRASE, keep_keystore=False)
    swarm = node_config.get_config("smoke").swarm.name
    for place in ("c", "there"):
        found = rotating.earlier_keys(tmp_path / place / "node.key", keys[-1].author, swarm)
        assert [(one.old, one.from_round) for one in found] == [(keys[0].author, 4), (keys[1].author, 21)]
    play(tmp_path / "there")


def test_a_key_is_given_up_once(tmp_path):
    play(tmp_path / "old", rounds=[0])
    own, _ = rotate(tmp_path / "old", tmp_path / "new")
    with pytest.raises(UsageError, match=f"was given up already, for {own.peer_id}"):
        rotate(tmp_path / "old", tmp_path / "another")
    assert not (tmp_path / "another" / "node.key").exists()
    assert rotate(tmp_path / "old", tmp_path / "new")[0].author == own.author  # ends what is done already


def test_one_killed_before_the_old_key_is_marked_ends_what_it_began(tmp_path, monkeypatch):
    play(tmp_path / "old", rounds=[0])

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(identity, "mark_given_up", killed)
        with pytest.raises(Killed):
            rotate(tmp_path / "old", tmp_path / "new")
    begun = identity.load(tmp_path / "new" / "node.key")
    assert rotate(tmp_path / "old", tmp_path / "new")[0].author == begun.author
    assert identity.given_up_for(tmp_path / "old" / "node.key") == begun.peer_id


def test_nothing_is_overwritten_and_a_moved_key_gives_up_nothing(tmp_path):
    play(tmp_path / "old", rounds=[0])
    other = play(tmp_path / "other")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        rotate(tmp_path / "old", tmp_path / "other")
    assert play(tmp_path / "other").author == other.author
    identity.mark_moved(tmp_path / "old" / "node.key")
    with pytest.raises(KeyFileError, match="was moved to another machine"):
        rotate(tmp_path / "old", tmp_path / "new")


def test_a_restored_key_that_cannot_play_can_still_say_who_speaks_in_its_place(tmp_path):
    old = play(tmp_path / "old", rounds=range(5))
    moving.export_key(tmp_path / "old" / "node.key", tmp_path / "key.json", PASSPHRASE)
    moving.import_key(tmp_path / "key.json", tmp_path / "restored", PASSPHRASE)
    with pytest.raises(UsageError, match="in which swarm"):
        rotate(tmp_path / "restored", tmp_path / "new", passphrase=PASSPHRASE)
    own, round_ = rotate(tmp_path / "restored", tmp_path / "new", swarm="tests", passphrase=PASSPHRASE)
    assert round_ == 0  # nobody knows what it has said: nothing of it counts from here on
    assert rotating.earlier_keys(tmp_path / "new" / "node.key", own.author, "tests")[0].old == old.author


def test_what_nobody_signed_in_a_key_file_is_a_sentence(tmp_path):
    own = play(tmp_path / "node")
    with (tmp_path / "node" / "node.key").open("a") as file:
        file.write("rotation 00ff\n")
    with pytest.raises(KeyFileError, match="what nobody has signed"):
        rotating.earlier_keys(tmp_path / "node" / "node.key", own.author, "tests")


def test_the_command_says_who_and_from_when(tmp_path, capsys):
    old = play(tmp_path / "old", rounds=[8])
    assert main(["rotate", str(tmp_path / "old"), "--to", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    own = identity.load(tmp_path / "new" / "node.key")
    assert own.peer_id in said and "does not from round 9 on" in said
    assert keystore.is_keystore(identity.key_line(tmp_path / "new" / "node.key"))
    assert main(["show", str(tmp_path / "old")]) == 0
    shown = capsys.readouterr().out
    assert old.peer_id in shown and f"given up for {own.peer_id}" in shown
    assert main(["rotate", str(tmp_path / "old"), "--to", str(tmp_path / "more")]) == 2
