"""A model card says what the run's files say, shows whatever is in them as text, and tells nothing of this machine."""

import json
import re

import msgspec
import pytest
import yaml
from markdown_it import MarkdownIt

from configs import common
from rlswarm_jax import files
from rlswarm_jax.evaluation import wilson
from rlswarm_jax.files import JOURNAL_FILE, METRICS_FILE
from rlswarm_jax.identity import friendly_name, simulated
from rlswarm_jax.journal import Entry as Row
from rlswarm_jax.journal import Journal
from rlswarm_jax.publish import card
from rlswarm_jax.publish.queue import Entry
from rlswarm_jax.records.envelope import open_envelope
from tests.game.hand_driver import ME, record_of, signed
from tests.publish.merkle import root

ENTRY = Entry("ab" * 32, 0, friendly_name(ME.author), 5, "out")
PEERS = [simulated(9, node).author for node in range(3)]


def config(**changed):
    found = json.loads(common.swarm("mine").to_json_best_effort())
    for name, value in changed.items():
        section, leaf = name.split("__")
        found[section][leaf] = value
    return found


@pytest.fixture
def folder(tmp_path):
    """A node's, after seven rounds of which the last does not count for the weights."""
    learned = {f"learned_from/{PEERS[0].hex()}": 3.0, f"learned_from/{PEERS[1].hex()}": 5.0}
    rows = [{"node": 0, "round": round_, "groups/local": 2.0} | learned for round_ in range(7)]
    rows[0] |= {"held_out/accuracy": 0.25, "held_out/problems": 64.0, "held_out/accuracy/products": 0.5}
    rows[4] |= {"held_out/accuracy": 0.5, "held_out/problems": 64.0, "held_out/accuracy/products": 0.75}
    rows[6] |= {"held_out/accuracy": 0.99, "held_out/problems": 64.0, f"learned_from/{PEERS[2].hex()}": 1.0}
    other = {"node": 1, "round": 0, "held_out/accuracy": 0.01}
    (tmp_path / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in [other, *rows]))
    journal = Journal(tmp_path / JOURNAL_FILE)
    for round_ in (2, 3, 4):
        raw = msgspec.msgpack.encode(signed(record_of(ME, round_=round_), ME).raw)
        journal.write(Row(0, round_, 0, "Publish", raw, 0.0))
    journal.write(Row(1, 0, 0, "Publish", msgspec.msgpack.encode(b"another's"), 0.0))
    journal.close()
    return tmp_path


def test_it_says_what_the_files_say(folder):
    said = card.render(folder, config(tasks__products={"weight": 3.0}), ENTRY, adapter=False)
    assert f"# {card.escaped(ENTRY.name)} after round 5" in said and ENTRY.weights in said
    assert "in 6 rounds, on 12 groups of its own completions and 48 of 2 other nodes" in said
    names = [friendly_name(author) for author in PEERS]
    assert all((card.escaped(name) in said) == (n < 2) for n, name in enumerate(names))
    low, high = wilson(0.5, 64)
    assert "| all | 25.0 % (16.0 to 36.8) |" in said and f"50.0 % ({100 * low:.1f} to {100 * high:.1f}) |" in said
    assert "| products | 50.0 % | 75.0 % |" in said and "after 4 rounds" in said and "99.0" not in said
    own = [open_envelope(signed(record_of(ME, round_=r), ME).raw).hash for r in (2, 3, 4)]
    assert "rounds 2 to 4, 3 of them" in said and root(own).hex() in said and ME.peer_id in said
    assert "products (50 %)" in said and "jax 0." in said


def test_its_head_is_what_a_hub_reads(folder):
    hub = card.render(folder, config(model__path="Qwen/Qwen2.5-0.5B"), ENTRY, adapter=True)
    told = yaml.safe_load(hub.split("---\n")[1])
    assert (told["library_name"], told["base_model"]) == ("peft", "Qwen/Qwen2.5-0.5B")
    assert told["base_model_relation"] == "adapter" and "rlswarm_jax" in told["tags"]
    assert "base_model" not in yaml.safe_load(card.render(folder, config(), ENTRY, adapter=False).split("---\n")[1])


HOSTILE = [
    "<script>alert(1)</script>",
    "[click](javascript:alert(1))",
    "![x](http://evil/x.png)",
    "a | b\n# head\n```\n---\nx: y",
    "http://evil.example and www.evil.example",
    "\u202egnp.exe\u2066\x1b[31m\x00",
    "*b* _i_ `c` ~~s~~ &lt;img src=x&gt; $x$ :smile: @everyone",
    "x" * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_text_from_outside_is_text(folder, text):
    hostile = config(swarm__name=text, tasks__products={"weight": 1.0}, model__path=text)
    hostile["tasks"] = {text: {"weight": 1.0, "path": text}}
    entry = msgspec.structs.replace(ENTRY, name=text)
    plain = card.render(folder, config(), ENTRY, adapter=True).split("---\n", 2)[2]
    rows = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    rows[1][f"held_out/accuracy/{text}"] = 0.5
    (folder / METRICS_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = card.render(folder, hostile, entry, adapter=True)
    front, body = said.split("---\n", 2)[1:]
    assert yaml.safe_load(front)["library_name"] == "peft"
    ours, theirs = (shape(MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(one)) for one in (plain, body))
    assert theirs - ours <= {("td_open", "")} and "javascript:" not in str(theirs)
    assert all(c.isprintable() or c == "\n" for c in body) and len(body) < len(plain) + 2_000


def shape(tokens):
    """What a renderer would make: kinds of tokens, and where links lead."""
    found = set()
    for token in tokens:
        for one in [token, *(token.children or ())]:
            links = str(one.attrs.get("href", "")) + str(one.attrs.get("src", ""))
            found.add((one.type, links))
    return found


def test_nothing_of_this_machine_is_in_it(folder, tmp_path):
    here = tmp_path / "models" / "my-qwen"
    here.mkdir(parents=True)
    chain = {"chain__endpoint": "http://ada:secret@10.1.2.3/key", "chain__contract": "0x" + "1" * 40, "chain__id": 7}
    private = {"swarm__key": "/home/ada/node.key", "swarm__bootnodes": ["/ip4/10.9.8.7/tcp/1/p2p/x"]}
    private |= {"swarm__host": "10.9.8.7", "publish__to": "hf://ada/secret-plan", "lora__path": str(here)}
    told = config(model__path=str(here), **chain, **private)
    told["tasks"] = {"words": {"kind": "dataset", "path": str(tmp_path / "data.jsonl"), "weight": 1.0}}
    said = card.render(folder, told, ENTRY, adapter=False)
    for secret in (str(tmp_path), "10.1.2.3", "10.9.8.7", "secret", "node.key", "/home"):
        assert secret not in said, secret
    assert "my-qwen" in said and "data.jsonl" in said
    assert f"--contract {'0x' + '1' * 40} --chain-id 7" in said


def test_a_node_that_said_and_measured_nothing(tmp_path):
    (tmp_path / files.METRICS_FILE).write_text(json.dumps({"node": 0, "round": 0}) + "\n")
    Journal(tmp_path / JOURNAL_FILE).close()
    said = card.render(tmp_path, config(), ENTRY, adapter=False)
    assert "was not measured" in said and "nobody else's" in said and "Merkle" not in said
    assert re.search(r"^- Hash of the weights", said, re.MULTILINE)
