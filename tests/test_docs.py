"""Whatever README and docs tell a reader to type or paste works."""

import re

import pytest

from tests.documents import ROOT, Page, Wrong, blocks

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_that_a_page_says_to_type_works(path, tmp_path):
    page = Page(path, tmp_path)
    page.try_all()
    text = path.read_text()
    fenced = len(re.findall(r"^ *(?:```|~~~)", text, re.MULTILINE)) / 2
    assert page.tried >= fenced == sum(bool(block.text) for block in blocks(text)) - indented(text)


def indented(text):
    return sum(not re.match(r" *(```|~~~)", text.splitlines()[block.line - 1]) for block in blocks(text))


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
