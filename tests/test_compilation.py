"""What one process compiled, another takes from the disk, unless the user says otherwise."""

import ast
import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlswarm_jax import compilation
from tests.grpo import tiny

TRACED: list[str] = []
ROOT = Path(__file__).parents[1]
WHERE = "from rlswarm_jax import compilation; print(compilation.use_cache())"
GENERATE = """
import logging, jax
from rlswarm_jax import assets, qwen
jax.config.update("jax_log_compiles", True)
policy = qwen.load(assets.SPOILED)
qwen.generate(policy, ["abc"], max_new_tokens=4)
"""


def run(script: str, home: Path, **environment: str) -> subprocess.CompletedProcess:
    """With no choice made but those of `environment`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment = {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(home), **environment}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True)


def test_a_second_process_compiles_nothing_again(tmp_path):
    first, second = (run(GENERATE, tmp_path).stderr for _ in range(2))
    assert "Persistent compilation cache hit for 'jit_sample'" not in first
    assert "Persistent compilation cache hit for 'jit_sample'" in second
    assert any((tmp_path / "rlswarm_jax" / "xla").iterdir())


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, "{home}/rlswarm_jax/xla"),
        ({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, "/elsewhere"),
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
    ],
)
def test_the_user_decides_where_it_is(tmp_path, environment, where):
    assert run(WHERE, tmp_path, **environment).stdout.strip() == where.format(home=tmp_path)


def test_a_user_without_a_home_has_no_cache():
    """Of a number that no passwd file has, too."""
    homeless = "import os; os.environ.pop('HOME', None); os.environ.pop('XDG_CACHE_HOME', None);"
    homeless += "import pwd; pwd.getpwuid = dict().__getitem__;"
    assert run(f"{homeless}{WHERE}", ROOT).stdout.strip() == "None"


QUICKLY = """
import jax
from rlswarm_jax import compilation
for parameters in (compilation.SMALL, compilation.SMALL + 1):
    jit = compilation.quickly(jax.jit, parameters)
    print(jit is jax.jit or jit.keywords["compiler_options"] == compilation.QUICK and float(jit(lambda x: x + 1)(1.0)))
"""


@pytest.mark.parametrize(
    ("environment", "small"),
    [
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, "2.0"),
        ({"XLA_FLAGS": "--xla_backend_optimization_level=2"}, "True"),
        ({"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}, "True"),
    ],
)
def test_small_models_are_compiled_quickly_unless_the_user_says_how(tmp_path, environment, small):
    """True is for `jax.jit` as it is; 2.0 what a program says that was compiled so."""
    assert run(QUICKLY, tmp_path, **environment).stdout.split() == [small, "True"]


BITS = [
    "tests/qwen/test_refill.py::TestExactly",
    "tests/test_simulate.py::test_the_order_of_arrival_does_not_matter",
]


@pytest.mark.skipif(not tiny.QUICK, reason="they run so by themselves")
def test_bits_do_not_depend_on_company_in_the_programs_that_users_run():
    """`make test` compiles quickly; what XLA makes of the same programs without that is another matter."""
    kept = {name: value for name, value in os.environ.items() if name not in tiny.QUICKLY}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *BITS], cwd=ROOT, env=kept, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"{len(BITS)} passed" in done.stdout, done.stdout


class TestPrograms:
    """Kept programs are loaded without tracing, and only where they are what would be compiled."""

    @staticmethod
    def scaled(factor, traced):
        """A function that closes over a number, and a place outside of it where each trace is noted."""

        def scale(tree):
            TRACED.append(traced)
            return {"scaled": jax.tree.map(lambda x: x * factor, tree), "sum": tree["a"].sum()}

        return scale

    ARGUMENT: ClassVar = {"a": np.arange(3, dtype=np.float32), "b": np.float32(2)}

    def run(self, folder, factor, **options):
        TRACED.clear()
        found = compilation.Programs(folder).jit(self.scaled(factor, "x"), **options)(self.ARGUMENT)
        assert np.array_equal(found["scaled"]["a"], self.ARGUMENT["a"] * factor) and found["sum"] == 3
        return len(TRACED)

    def test_what_was_compiled_is_not_traced_again(self, tmp_path):
        assert self.run(tmp_path / "p", 2.0) == 1
        assert self.run(tmp_path / "p", 2.0) == 0
        assert (tmp_path / "p").stat().st_mode & 0o777 == 0o700

    def test_another_closure_or_shape_is_another_program(self, tmp_path):
        assert self.run(tmp_path / "p", 2.0) == 1
        assert self.run(tmp_path / "p", 3.0) == 1  # and gives what it should
        scale = compilation.Programs(tmp_path / "p").jit(self.scaled(2.0, "x"))
        found = scale({"a": np.ones(4, np.float32), "b": np.float32(1)})
        assert found["scaled"]["a"].shape == (4,)
        with_inner = [compilation.Programs(tmp_path / "p").jit(self.outer(lambda x, by=by: x + by)) for by in (1, 2)]
        assert [float(one(np.float32(0))) for one in with_inner] == [1, 2]

    @staticmethod
    def outer(inner):
        return lambda x: inner(x)

    @pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: raw[:99] + b"x" + raw[100:], lambda raw: b""])
    def test_a_damaged_file_is_compiled_again(self, tmp_path, damage, caplog):
        tmp_path.chmod(0o700)
        self.run(tmp_path, 2.0)
        for file in tmp_path.glob("scale_*"):
            file.write_bytes(damage(file.read_bytes()))
        assert self.run(tmp_path, 2.0) == 1 and "is damaged" in caplog.text

    def test_what_a_backend_does_not_load_is_compiled_again(self, tmp_path, monkeypatch, caplog):
        """After a new driver, say."""

        def refuse(*_, **__):
            raise jax.errors.JaxRuntimeError("INTERNAL: made for another\nand more")

        self.run(tmp_path / "p", 2.0)
        with monkeypatch.context() as new:
            new.setattr(compilation.serialize_executable, "deserialize_and_load", refuse)
            assert self.run(tmp_path / "p", 2.0) == 1
        assert "cannot be loaded (INTERNAL: made for another): it is compiled again" in caplog.text
        assert self.run(tmp_path / "p", 2.0) == 0

    def test_a_full_disk_keeps_nothing_and_stops_nobody(self, tmp_path, monkeypatch):
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as disk:
            disk.setattr(Path, "replace", full)
            assert self.run(tmp_path / "p", 2.0) == 1
        assert {one.suffix for one in (tmp_path / "p").glob("scale_*")} == {".lock"}

    def test_nothing_is_loaded_that_others_could_have_written(self, tmp_path, caplog):
        tmp_path.chmod(0o700)
        self.run(tmp_path, 2.0)
        (file,) = (one for one in tmp_path.glob("scale_*") if one.suffix != ".lock")
        file.chmod(0o620)
        assert self.run(tmp_path, 2.0) == 1 and "written by others" in caplog.text
        file.chmod(0o600)
        assert self.run(tmp_path, 2.0) == 0
        tmp_path.chmod(0o770)
        assert self.run(tmp_path, 2.0) == 1
        tmp_path.chmod(0o700)
        (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
        assert self.run(tmp_path.parent / f"{tmp_path.name}-link", 2.0) == 1

    def test_options_of_the_compiler_reach_it_and_make_another_program(self, tmp_path):
        with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
            self.run(tmp_path / "p", 2.0, compiler_options={"xla_no_such_option": True})
        assert self.run(tmp_path / "p", 2.0) == 1
        assert self.run(tmp_path / "p", 2.0, compiler_options=compilation.QUICK) == 1
        assert self.run(tmp_path / "p", 2.0, compiler_options=compilation.QUICK) == 0

    def test_what_is_donated_stays_so(self, tmp_path):
        for _ in range(2):
            given = jnp.arange(4.0)
            add = compilation.Programs(tmp_path / "p").jit(self.outer(lambda x: x + 1), donate_argnums=0)
            assert np.array_equal(add(given), [1, 2, 3, 4]) and given.is_deleted()

    def test_what_cannot_be_told_is_compiled_as_usual(self, tmp_path):
        thing = object()
        kept = compilation.Programs(tmp_path / "p").jit(lambda x: x + (thing is None))
        assert float(kept(np.float32(1))) == 1 and not any((tmp_path / "p").iterdir())

    def test_what_xla_had_in_its_own_cache_is_kept_the_next_time(self, tmp_path, monkeypatch):
        """A program that was loaded from there can't be written."""
        with monkeypatch.context() as found:
            found.setattr(compilation, "_hits", lambda: contextlib.nullcontext(["hit"]))
            assert self.run(tmp_path / "p", 2.0) == 1
            assert {one.suffix for one in (tmp_path / "p").iterdir()} == {".lock"}
        assert self.run(tmp_path / "p", 2.0) == 1 and self.run(tmp_path / "p", 2.0) == 0

    def test_it_can_be_traced_by_others_and_takes_numbers(self, tmp_path):
        kept = compilation.Programs(tmp_path / "p").jit(self.outer(lambda x: x * 2))
        assert jax.eval_shape(kept, jnp.ones(3)).shape == (3,) and kept(3) == 6
        assert float(jax.grad(kept)(1.0)) == 2


def test_a_run_of_other_rounds_compiles_and_traces_nothing(tmp_path, monkeypatch):
    """Nor one at another learning rate's decay: what changes with each round is an argument."""
    from configs import quickstart
    from rlswarm_jax import identity
    from rlswarm_jax.running import build

    monkeypatch.setattr(compilation, "use_cache", lambda: tmp_path)
    seen = []

    def listen(event, seconds, fun_name="", **_):
        if event.endswith(("jaxpr_trace_duration", "backend_compile_duration")):
            seen.append(fun_name)

    def start(rounds: int) -> set[str]:
        config = quickstart.get_config("smoke")
        config.rounds, config.learn.decay_to = rounds, 0.5
        config.evaluation.problems = config.evaluation.rows = config.swarm.local_groups = 2
        seen.clear()
        build.build(config, [identity.simulated(0, 0)]).compile()
        return {name.partition("_")[0] for name in seen}

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert {"sample", "summed", "apply"} <= start(10)
        kept = {path.name for path in (tmp_path / "programs").iterdir()}
        assert not {"sample", "summed", "apply", "jit(sample", "jit(summed", "jit(apply"} & start(11)
        assert {path.name for path in (tmp_path / "programs").iterdir()} == kept
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_all_that_programs_are_made_of_is_in_their_names():
    """Modules whose functions are traced import those only that are hashed, or libraries."""
    package = Path(compilation.__file__).parent
    hashed = {file for pattern in compilation.SOURCES for file in package.glob(pattern)}
    assert {package / "qwen" / "model.py", package / "grpo" / "learner.py"} <= hashed
    untraced = {"rlswarm_jax.errors", "rlswarm_jax.files"}
    for file in hashed:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlswarm_jax"):
                for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                    place = package.parent / Path(*name.split("."))
                    if place.with_suffix(".py").exists() and name not in untraced:
                        assert place.with_suffix(".py") in hashed, f"{file.name} imports {name}"
