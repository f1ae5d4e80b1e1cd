import msgspec

from rlswarm_jax.game.player import Player, SavedPlayer
from rlswarm_jax.game.round import NodeState
from rlswarm_jax.journal import Journal
from tests.game.hand_driver import ALICE, ME, make_game, play, record_of, signed


def test_what_a_node_carries_between_rounds_comes_back_whole_from_its_bytes(tmp_path):
    game = make_game(external_groups=1)
    state = play(game, NodeState(round=1), arrived=[signed(record_of(ALICE), ALICE)]).state
    empty = NodeState(round=state.round)
    assert state.pool != empty.pool and state.sheets and state.teachers != empty.teachers
    player = Player(0, game, ME, Journal(tmp_path / "journal.sqlite"))
    raw = msgspec.msgpack.encode(player.save(state, 3.5, player.inbox.save()))
    again = Player(0, game, ME, Journal(tmp_path / "again.sqlite"))
    again.restore(msgspec.msgpack.decode(raw, type=SavedPlayer))
    assert again.state == state
