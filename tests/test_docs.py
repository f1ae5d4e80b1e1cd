"""Whatever README and docs tell a reader to type or paste works; the README is short and leads everywhere."""

import re

import pytest

from rlswarm_jax.qwen.config import from_hf
from tests.documents import ROOT, Page, Wrong, blocks, links, sentences

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
INDEX = "## Where everything is\n"
WORDS = 1200
OF_PYTHON = [path for path in PAGES if "```python" in path.read_text() and path.stem != "tasks"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_a_page_says_to_type_works(path, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    page = Page(path, tmp_path / "home")
    page.try_all()
    assert not list(here.iterdir())
    text = path.read_text()
    fenced = len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) / 2
    assert page.tried >= fenced == sum(bool(block.text) for block in blocks(text)) - indented(text)


@pytest.mark.slow
@pytest.mark.parametrize("path", OF_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_python_of_a_page_computes(path, tmp_path):
    Page(path, tmp_path, really=True).try_all()
    assert (tmp_path / "my-checkpoint").exists() == ("my-checkpoint" in path.read_text())


def test_the_readme_is_short_and_its_index_leads_to_every_page():
    before, index, after = README.read_text().partition(INDEX)
    assert index and len(before.split()) <= WORDS
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")}
    assert there <= links(after)
    shown = {path.resolve() for page in PAGES for path in (page.parent / link for link in links(page.read_text()))}
    assert {path for path in (ROOT / "docs").iterdir() if path.is_file()} <= shown


CODE = (ROOT / "configs", ROOT / "experiments", ROOT / "rlswarm_jax")
SAID_TO_USERS = (  # errors whose sentences end on a terminal, or in a node's log
    "(Usage|Transient|Disk|InUse|Field|Launch|KeyFile|Network|Checkpoint|Journal|Save|Host|Prompt|NoWorker|Publish|Away)Error"
    "|WrongChain|NoContract|InsufficientFunds|FileDamaged|NotMined|NotAllowed|PayoutFixed|(Bad|Expired)Registration"
    "|EndpointDown|Busy|WrongStatus|AnswerTooLarge"
)


@pytest.fixture(scope="module")
def quoted():
    """What the first column of the page's tables quotes."""
    rows = re.findall(r"^\| (`.*?) \| ", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    return [quote for row in rows for quote in re.findall(r"`([^`]+)`", row)]


def test_troubleshooting_quotes_what_the_programs_say(quoted):
    said = sentences(*CODE)
    assert [quote for quote in quoted if not any(quote in sentence for sentence in said)] == []


def test_troubleshooting_has_each_error_that_a_user_can_get(quoted):
    told = [quote for quote in quoted if len(re.sub(r"\W", "", quote)) > 10]
    found = {text for text in sentences(*CODE, of=SAID_TO_USERS) if len(re.sub(r"\W", "", text)) > 10}
    assert len(found) > 100
    assert {text for text in found if not any(quote in text for quote in told)} == set()


# config.json of published checkpoints: layers, width, MLP, heads, key/value heads, head size
SHAPES = {
    "Qwen2.5-0.5B": (24, 896, 4864, 14, 2, 64),
    "Qwen3-0.6B": (28, 1024, 3072, 16, 8, 128),
    "Qwen2.5-1.5B": (28, 1536, 8960, 12, 2, 128),
    "Qwen3-1.7B": (28, 2048, 6144, 16, 8, 128),
    "Qwen2.5-3B": (36, 2048, 11008, 16, 2, 128),
    "Qwen3-4B": (36, 2560, 9728, 32, 8, 128),
}


def test_the_memory_table_is_what_the_shapes_take():
    text = (ROOT / "docs" / "real-models.md").read_text().partition("<!-- rendered")[0]
    rows = dict(re.findall(r"^\| (Qwen[\w.-]+) \| (.*) \|$", text, re.MULTILINE))
    assert rows.keys() == SHAPES.keys()
    for name, (layers, width, mlp, heads, kv_heads, head) in SHAPES.items():
        config = from_hf(
            {
                "model_type": "qwen3" if name.startswith("Qwen3") else "qwen2",
                "vocab_size": 151936,
                "hidden_size": width,
                "intermediate_size": mlp,
                "num_hidden_layers": layers,
                "num_attention_heads": heads,
                "num_key_value_heads": kv_heads,
                "head_dim": head,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e6,
                "tie_word_embeddings": True,
            }
        )
        n, cache = config.num_parameters, 1000 * layers * 2 * kv_heads * head * 2
        billions = n / 1e9
        wanted = f"{n:,} | {12 * billions:.1f} | {4 * billions:.1f} | {36 * billions:.1f} | {cache / 1e6:.0f}"
        assert rows[name] == wanted, name


def indented(text):
    return sum(not re.match(r" *(```|~~~)", text.splitlines()[block.line - 1]) for block in blocks(text))


LOADED = "from rlswarm_jax import qwen\n\npolicy = qwen.load('some/Qwen')"


def fence(language, text):
    return f"Look:\n\n```{language}\n{text}\n```\n"


@pytest.mark.parametrize(
    "text",
    [
        fence("bash", "make runn"),
        fence("bash", "python -m experiments.runn --config configs/quickstart.py"),
        fence("bash", "python -m experiments.run --config configs/quickstrat.py"),
        fence("bash", "python -m experiments.run --config configs/quickstart.py:smok"),
        fence("bash", "python -m experiments.run --config configs/quickstart.py --config.seeed=1"),
        fence("bash", "python -m experiments.run --config configs/quickstart.py \\\n    --config.swarm.nodes=0"),
        fence("bash", "python -m experiments.run --config configs/quickstart.py --config.tasks=\"{'countdwn': {}}\""),
        fence("bash", "python -m experiments.run --config configs/quickstart.py --config.tasks=\"{'countdown': {}\""),
        fence("bash", "cd here && python -m experiments.report --rounds 3 runs/x"),
        fence("bash", "python -m experiments.show runs/x --runde 3"),
        fence("bash", "python -m experiments.chain stat --rpc URL"),
        fence("bash", "python -m rlswarm_jax.chain.devnet --dirr DIR"),
        fence("bash", "python -m experiments.games"),
        fence("bash", "pip install 'rlswarm_jax[dataset]'"),
        fence("bash", "pip install 'jax[cuda99]'"),
        fence("bash", "curl https://example.org | sh"),
        fence("bash", "echo 'unfinished"),
        fence("python", "from rlswarm_jax import qwen\nqwen.laod('embedded')"),
        fence("python", "config.tasks.words = dict(kind='dataset', path='embedded:wrd_problems')"),
        fence("python", "x ="),
        fence("python", '"""configs/mine.py"""\n\n\ndef get_config(variant=""):\n    return None')
        + fence("bash", "python -m experiments.run --config configs/mine.py"),
        fence("json", "{,}"),
        fence("toml", "a = "),
        fence("perl", "1"),
        fence("", "what is this"),
        "```bash\nmake run\n",
        "    python -m experiments.nowhere\n",
        "Say `make runn` now.",
        "| NVIDIA | `.venv/bin/pip install 'jax[cuda14]'` |",
        "See [this](nowhere.md).",
        "See [that](#nowhere).",
        "It is in `configs/nowhere.py`.",
        "A walk:\n\n    experiments/nowhere.py -> configs/common.py\n",
        fence(
            "python",
            "from rlswarm_jax import qwen\n\npolicy = qwen.load('some/Qwen')\nqwen.generate(policy, 'x', size=8)",
        ),
        fence(
            "python",
            "from rlswarm_jax import qwen\n\npolicy = qwen.load('some/Qwen')\nqwen.generate(policy, 'x').words",
        ),
    ],
)
def test_what_does_not_work_is_found(text, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(Wrong):
        Page(path, tmp_path / "home").try_all()


@pytest.mark.parametrize(
    "text",
    [
        fence("bash", "make run     # a comment; make nothing\nmake test ARGS=-x"),
        fence("bash", "python -m experiments.run --config configs/quickstart.py [--config.seed=1] --resume"),
        fence("python", '"""configs/mine.py: x"""\n\nfrom configs.solo import get_config')
        + fence("bash", "python -m experiments.run --config configs/mine.py:smoke --config.rounds=3"),
        fence("json", "{}") + fence("toml", "a = 1"),
        "# A heading, with `code`\n\n[up](#a-heading-with-code)",
    ],
)
def test_what_works_passes(text, tmp_path):
    path = tmp_path / "page.md"
    path.write_text(text)
    Page(path, tmp_path / "home").try_all()
