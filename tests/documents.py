"""Finds all that a Markdown page asks its reader to type or paste, and tries it, as far as that is cheap.

Every fenced block must be of a language that is known here, every command one that is known here: there is no list of
exceptions. Placeholders (`DIR`, `0x...`) are filled in; models and data of a hub are the test's own. What would compile
a model is called with a stand-in that takes the same arguments, unless all is to be tried `really`.
"""

import argparse
import ast
import configparser
import contextlib
import functools
import importlib
import importlib.util
import inspect
import itertools
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import ml_collections
import numpy as np
import yaml
from packaging.requirements import Requirement

from configs import quickstart
from experiments import sweep as sweep_command
from rlswarm_jax import assets, qwen
from rlswarm_jax.identity import simulated
from rlswarm_jax.qwen.verdict import Replay
from rlswarm_jax.records.schema import ANSWER
from rlswarm_jax.running import arguments as cli
from rlswarm_jax.running import build, sweep
from rlswarm_jax.tasks import make_mixture

ROOT = Path(__file__).parent.parent
INLINE = "in a sentence"
PROGRAMS = ("python", "make", "pip", "npm", ".venv/bin/")
FILLED = {  # what a page leaves open, and what a reader may put there
    r"16Uiu2\w*\.\.\.": simulated(0, 1).peer_id,
    r"https://\.\.\.": "https://example.org",
    r"0x\.\.\.": "0x" + "1" * 40,
    r"\bNAME\b": "decode",
    r"\b(DIR|PATH)\b": "here",
    r"\b(N|K)\b": "1",
    r"\$SLURM_ARRAY_TASK_ID\b": "0",
    r"\bURL\b": "http://127.0.0.1:8545",
}


class Wrong(AssertionError):
    """What a page says does not work; the message names page, line and cause."""


class Block(NamedTuple):
    """language: as written; empty for an indented one."""

    line: int
    language: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """Fenced blocks, and indented ones of commands."""
    fence, language, begun, kept = "", "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        mark = re.match(r" *(`{3,}|~{3,})\s*(\S*)", line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                yield Block(begun, language, inspect.cleandoc("\n".join(kept)) if kept else "")
                fence, kept = "", []
            else:
                kept.append(line)
        elif mark:
            fence, language, begun = mark[1], mark[2], number
        elif re.match(rf"(?: {{4}}|\t)\s*({'|'.join(map(re.escape, PROGRAMS))})", line):
            yield Block(number, "bash", line.strip())
    if fence:
        raise Wrong(f"line {begun}: a fenced block that does not end")


def inline(text: str) -> Iterator[Block]:
    """Commands within a sentence or a table."""
    fenced = re.sub(r"^( *)(```|~~~).*?^ *\2$", lambda m: "\n" * m[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    for found in re.finditer(r"`((?:\.venv/bin/)?(?:python -m|make|pip|npm) [^`]+)`", fenced):
        yield Block(fenced[: found.start()].count("\n") + 1, INLINE, " ".join(found[1].split()))


class Page:
    """Tries a page's blocks in order: a file that it tells to save is there for what comes after.

    home: where such files are saved, and what the page's Python writes. really: models compute, too.
    """

    def __init__(self, path: Path, home: Path, really: bool = False):
        self._path, self._home, self._saved, self._really = path, home, set[str](), really
        self.tried = 0
        self._config = quickstart.get_config()

    def try_all(self) -> None:
        text = self._path.read_text()
        found = sorted([*blocks(text), *inline(text)])
        for block in [b for b in found if b.language == "python"]:
            self._save(block)
        computing = contextlib.nullcontext() if self._really else stand_ins()
        with mock.patch.object(sys, "path", [str(self._home), *sys.path]), hub(), computing:
            importlib.invalidate_caches()
            for block in found:
                try:
                    self.try_block(block)
                except (Exception, SystemExit) as error:
                    raise Wrong(f"{self._path.name}, line {block.line}: {type(error).__name__}: {error}") from error
                self.tried += 1
        try_links(self._path, text, self._home)

    def try_block(self, block: Block) -> None:
        match block.language:
            case "bash" | "sh" | "shell" | "console" | "in a sentence":
                for words in commands(block.text):
                    self.try_command(words, named=block.language == INLINE)
            case "python":
                self._paste(block)
            case "json":
                json.loads(block.text)
            case "toml":
                tomllib.loads(block.text)
            case "yaml":
                self._agents(yaml.safe_load(block.text))
            case "ini":
                configparser.ConfigParser().read_string(block.text)
            case other:
                raise Wrong(f"nobody knows how to try a block of {other!r}")

    # --- Python

    def _save(self, block: Block) -> None:
        if named := re.match(r'"""([\w/]+\.py)', block.text):
            file = self._home / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
            self._saved.add(named[1])
            sys.modules.pop(named[1].removesuffix(".py").replace("/", "."), None)

    def _paste(self, block: Block) -> None:
        """A config's lines go where they belong: into the end of a `get_config`."""
        names = {"config": self._config} if re.search(r"^config\.", block.text, re.MULTILINE) else {}
        before = set(self._config.tasks)
        self._home.mkdir(exist_ok=True)
        with contextlib.chdir(self._home):
            exec(compile(block.text, f"{self._path.name}:{block.line}", "exec"), names)
        for task in set(self._config.tasks) - before:
            make_mixture({task: self._config.tasks[task].to_dict()}).problem(0)

    # --- commands

    def try_command(self, words: list[str], named: bool = False) -> None:
        """named: without arguments a sentence names a program, and asks nobody to start it so."""
        words = [fill(word) for word in words if not re.fullmatch(r"\w+=.*", word)]
        if not words or words[0] == "export":
            return
        program = words[0].removeprefix(".venv/bin/")
        if program == "make":
            self._make(words[1:])
        elif program == "pip":
            install(words[1:])
        elif program == "npm":
            packages = json.loads((ROOT / "tests/chain/anvil/package.json").read_text())["dependencies"]
            if words[1] != "install" or not all(any(one.startswith(word) for one in packages) for word in words[2:]):
                raise Wrong(f"{shlex.join(words)}: the tests know {', '.join(packages)}")
        elif program == "wandb":
            if importlib.import_module("wandb.cli.cli").cli.get_command(None, words[1]) is None:
                raise Wrong(f"wandb has no command {words[1]!r}")
        elif program in ("python", "python3") and words[1] == "-m":
            self._module(words[2], words[3:], named)
        else:
            raise Wrong(f"nobody knows how to try {program!r}")

    def _make(self, words: list[str]) -> None:
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        for word in words:
            if word not in targets and "=" not in word:
                raise Wrong(f"there is no target {word!r} in the Makefile")

    def _module(self, name: str, words: list[str], named: bool) -> None:
        if name == "venv":
            if len(words) != 1:
                raise Wrong(f"venv takes a folder, and gets {words}")
            return
        if importlib.util.find_spec(name) is None:
            raise Wrong(f"there is no module {name}")
        found = importlib.util.find_spec(f"{name}.__main__" if self._is_package(name) else name)
        if found is None:
            raise Wrong(f"{name} cannot be run")
        source = Path(found.origin).read_text()
        if 'if __name__ == "__main__":' not in source:
            raise Wrong(f"{name} does nothing when it is run")
        if named and not words:
            return
        if "    main(run, __doc__" in source:
            if words != ["--help"]:
                self._experiment(name, words)
        elif name == "experiments.sweep":
            self._sweep(words)
        elif "ArgumentParser(" in source or "parse_args(" in source:
            takes(importlib.import_module(found.name).main, f"python -m {name}", words, whole=not named)
        elif words:
            raise Wrong(f"{name} takes no arguments, and gets {words}")

    def _agents(self, told: dict) -> None:
        """A sweep's of Weights & Biases: what its agent would start takes every value that it lists, or draws from."""
        wandb = importlib.import_module("wandb.sdk.launch.sweeps.utils")
        drawn = {name: [*of.get("values", [])] or [of["min"], of["max"]] for name, of in told["parameters"].items()}
        for values in itertools.product(*drawn.values()):
            given = {name: {"value": value} for name, value in zip(drawn, values, strict=True)}
            command = wandb.create_sweep_command(told["command"])
            place, args = command.index("${args}"), wandb.create_sweep_command_args({"args": given})["args"]
            self.try_command(["python", *command[1:place], *args, *command[place + 1 :]])

    def _is_package(self, name: str) -> bool:
        return bool(importlib.util.find_spec(name).submodule_search_locations)

    def _experiment(self, name: str, words: list[str]) -> None:
        """Its config is loaded and overridden, and whatever it describes is made; nothing is run."""
        words = [re.sub(r"^(--config=)?(configs/\w+\.py)", self._file, word) for word in words]
        arguments = cli.parse(words)
        if name == "experiments.warmstart":
            return
        cli.check(arguments.config)
        if "devices.process" not in " ".join(words):  # needs others
            described(arguments.config)

    def _sweep(self, words: list[str]) -> None:
        """Its points are made and checked; nothing is run."""
        words = [re.sub(r"^(--config=)?(configs/\w+\.py)", self._file, word) for word in words]
        if words != ["--help"]:
            own, rest = sweep_command.options(words)
            if not sweep.plan(rest).chosen(own.points, own.seeds):
                raise Wrong(f"{shlex.join(words)} has no run")

    def _file(self, found: re.Match) -> str:
        at = self._home if found[2] in self._saved else ROOT
        return f"{found[1] or ''}{at / found[2]}"


def described(config: ml_collections.ConfigDict) -> None:
    if config.chain.endpoint.startswith("$"):
        config.chain.endpoint = "none"  # nobody answers there
    game = build.described(config)
    for problem in game.mixture.held_out(min(8, config.evaluation.problems)):
        prompt = game.prompt(b"", ANSWER, problem, None)
        if len(prompt) > game.max_prompt_tokens:
            raise Wrong(f"a prompt of {len(prompt)} tokens, and max_prompt_tokens is {game.max_prompt_tokens}")


def commands(text: str) -> Iterator[list[str]]:
    """Each command of a shell's block, as words. Raises ValueError for what no shell reads."""
    whole = re.sub(r"\\\n\s*", " ", text)
    for line in whole.splitlines():
        line = re.sub(r"\[(--[^]]*)\]", r"\1", line)  # [--what=may be left out]
        line = re.sub(r"<[^>]*>|(?<=\s)>.*", "", line).removeprefix("$ ")
        words = shlex.split(line, comments=True)
        start = 0
        for place, word in enumerate([*words, ";"]):
            if word in ("|", "&&", ";", "||"):
                if words[start:place]:
                    yield words[start:place]
                start = place + 1


def fill(word: str) -> str:
    for left_open, filled in FILLED.items():
        word = re.sub(left_open, filled, word)
    return word


def install(words: list[str]) -> None:
    """What pip is asked for is what this project, or an extra of it, is."""
    assert words[0] == "install", words
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    known = {str(Requirement(one)) for one in [*project["dependencies"], *itertools.chain(*extras.values())]}
    for word in words[1:]:
        if word.startswith("-") or (ROOT / word).exists():
            continue
        wanted = Requirement(re.sub(r"^\.\[", f"{project['name']}[", word))
        if wanted.name == project["name"]:
            if not wanted.extras <= set(extras):
                raise Wrong(f"there is no extra {wanted.extras}: {sorted(extras)}")
        elif str(wanted) not in known:
            raise Wrong(f"{word} is nothing that pyproject.toml asks for")


class _Parsed(Exception):
    """The arguments were taken."""


def takes(main, program: str, words: list[str], whole: bool) -> None:
    """Whether a program's own parser takes these arguments; the program goes no further. whole: and needs no more."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(parser, *_, **__):
        parse(parser, words)
        raise _Parsed

    def error(parser, message):
        if message.startswith("the following arguments are required") and not whole:
            raise _Parsed
        raise Wrong(f"{program} {shlex.join(words)}: {message}")

    patched = mock.patch.multiple(argparse.ArgumentParser, parse_args=parse_args, error=error)
    with patched, mock.patch.object(sys, "argv", [program, *words]), contextlib.suppress(_Parsed):
        main()
        raise Wrong(f"{program} looks at no arguments")


# --- hubs


@contextlib.contextmanager
def hub() -> Iterator[None]:
    """Hub ids stand for the embedded model, and for three rows with whatever columns are asked for."""
    resolve = qwen.weights.resolve

    def here(path):
        return assets.SPOILED if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and "Qwen" in str(path) else resolve(path)

    class Library:
        class exceptions:
            DatasetsError = OSError

        @staticmethod
        def load_dataset(name, subset=None, split=None, revision=None):
            letters = [f"{split} {chr(97 + i)}" for i in range(20)]
            return [
                {"question": f"How many in {letter}?", "answer": f"so #### {i}"} for i, letter in enumerate(letters)
            ]

    installed = sys.modules.get("datasets")
    sys.modules["datasets"] = Library  # type: ignore[assignment]
    try:
        with mock.patch.object(qwen.weights, "resolve", here), mock.patch.object(build, "resolve", here):
            yield
    finally:
        del sys.modules["datasets"]
        sys.modules |= {"datasets": installed} if installed else {}


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """The calls of the front door that compile a model take what they take, and give what has the same parts."""
    given = {
        "logits": mock.MagicMock(spec=np.ndarray),
        "generate": mock.MagicMock(spec=[*qwen.Generation.__annotations__, *dir(qwen.Generation)]),
        "replay": mock.MagicMock(spec=[*Replay.__annotations__, *dir(Replay)]),
    }
    with contextlib.ExitStack() as patched:
        for name, out in given.items():
            taken = mock.create_autospec(getattr(qwen, name), return_value=out)
            patched.enter_context(mock.patch.object(qwen, name, taken))
        yield


# --- links


def try_links(path: Path, text: str, home: Path) -> None:
    """Files and headings that a page refers to, in links, in backquotes, and in the walks of an indented block."""
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file) if file else path
        if not there.exists():
            raise Wrong(f"{path.name} links to {target}, which does not exist")
        if anchor and anchor not in [slug(head) for head in re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)]:
            raise Wrong(f"{path.name} links to {target}, and there is no such heading")
    named = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|json|jsonl|sol|lock|toml|png|svg))`", text)
    for block in re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE):
        named += re.findall(r"(?<![\w./-])((?:rlswarm_jax|experiments|configs)/[\w./-]*\w)", block)
    for name in named:
        roots = (ROOT, ROOT / "rlswarm_jax", path.parent, home)
        if not name.startswith("runs/") and not any((root / name).exists() for root in roots):
            raise Wrong(f"{path.name} names {name}, which does not exist")


def slug(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def links(text: str) -> set[str]:
    """Files that a page links to or shows, without their anchors."""
    return {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)}


# --- sentences of the programs


def sentences(*folders: Path, of: str = "") -> set[str]:
    """Every text in the code of these folders, with `...` for what is filled in as it is said.

    of: a pattern of errors' names; only what these are raised with.
    """
    nodes: Iterable[ast.AST] = itertools.chain.from_iterable(map(_nodes, folders))
    if of:
        raised = (node.exc for node in nodes if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call))
        nodes = (part for call in raised if re.fullmatch(of, ast.unparse(call.func)) for part in call.args)
    return {text for node in nodes if (text := _said(node))}


@functools.cache
def _nodes(folder: Path) -> list[ast.AST]:
    return [node for path in sorted(folder.rglob("*.py")) for node in ast.walk(ast.parse(path.read_text()))]


def _said(node: ast.AST) -> str:
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[.\d]*[a-z]", "...", text)
        case ast.JoinedStr(values=parts):
            return "".join(_said(part) if isinstance(part, ast.Constant) else "..." for part in parts)
    return ""
