"""What one process has compiled, another loads: XLA's persistent cache, and whole programs that need no tracing.

XLA's cache saves the compilation. A program must still be traced and lowered to be found there, which for a small
model takes longer than all that is left: `Programs` keeps the loaded form, under a name that follows from the code.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import logging
import os
import pickle
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import IO, Any, NamedTuple

import jax
import numpy as np
from jax.experimental import serialize_executable

LEAST_SECONDS = 0.3  # what compiles faster is not kept
WAIT_SECONDS = 120.0  # for another process that compiles the same
# Of small models XLA makes programs that run as fast so, in two thirds of the time.
QUICK = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}
SMALL = 1 << 20  # parameters
MOST_BYTES = 512 << 20  # of kept programs; those that were not used for longest go first
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
SOURCES = ("parallel.py", "randomness.py", "compilation.py", "qwen/*.py", "grpo/*.py")  # that programs are made of
ARRAYS = np.ndarray, np.generic, jax.Array
SALT = "salt"
CANNOT = ValueError, NotImplementedError, jax.errors.JaxRuntimeError  # of a backend, or of one whose driver is new
HIT = "/jax/compilation_cache/cache_hits"
log = logging.getLogger("rlswarm_jax.compilation")


def use_cache() -> Path | None:
    """Turns on the cache unless the environment or the user's jax config has chosen one; where it is, None if nowhere.

    It is `~/.cache/rlswarm_jax/xla` (`XDG_CACHE_HOME`); `JAX_ENABLE_COMPILATION_CACHE=false` turns it off. There is
    none for a user without a home.
    """
    if not jax.config.jax_enable_compilation_cache:
        return None
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and not jax.config.jax_compilation_cache_dir:
        try:
            home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # neither HOME nor a user of that number in the passwd file
            return None
        jax.config.update("jax_compilation_cache_dir", str(home / "rlswarm_jax" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    chosen = jax.config.jax_compilation_cache_dir
    return Path(chosen) if chosen else None


def quickly(jit: Callable, parameters: int) -> Callable:
    """`jit` for a model of so many parameters: on a CPU, with `QUICK` for one of at most `SMALL`.

    Not where the environment says how XLA compiles.
    """
    said = os.environ.get("XLA_FLAGS", "")
    chosen = jax.config.values["jax_disable_most_optimizations"] or any(name in said for name in QUICK)
    if chosen or parameters > SMALL or jax.default_backend() != "cpu":
        return jit
    return functools.partial(jit, compiler_options=QUICK)


class Programs:
    """Compiled programs in a folder that only its owner can read or write: one file for a function and its shapes.

    A file's name is a hash of all that a program follows from: the function's source and what it closes over, the
    arguments' shapes and types, versions, flags and the machine. Loading one runs code, as a .pyc file does, so nothing
    is loaded from a folder or a file that somebody else may write. Where none can be kept all is compiled as usual.
    """

    def __init__(self, folder: Path | None):
        self._folder = folder if folder is not None and _own_folder(folder) else None
        self._world = _world() if self._folder else b""

    def jit(self, fn: Callable, **options: Any) -> Callable:
        """As `jax.jit`, for functions of arrays on one device that jax chooses."""
        if self._folder is None:
            return jax.jit(fn, **options)
        try:
            identity = hashlib.sha256(self._world + repr((_parts(fn, {}), sorted(options.items()))).encode())
        except Untold as error:
            log.debug("%s is compiled by each process: it closes over %s", fn.__name__, error)
            return jax.jit(fn, **options)
        return _Kept(self._folder, fn, options, identity.hexdigest())


class _Kept:
    """One function. What is found in XLA's cache can't be written again, so it must not be found there: the name that
    XLA has of a program has a part of the folder's own, which is another one after that has happened all the same.
    """

    def __init__(self, folder: Path, fn: Callable, options: dict[str, Any], identity: str):
        named = functools.wraps(fn)(lambda *args: fn(*args))
        self._name = f"{fn.__name__.strip('<>')}_{identity[:8]}"
        named.__name__ = f"{self._name}{_salt(folder)}"
        self._jitted, self._folder, self._identity = jax.jit(named, **options), folder, identity
        self._programs: dict[Any, Callable] = {}

    def __call__(self, *args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        if not all(isinstance(leaf, ARRAYS) and not isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._jitted(*args)
        return self._program(args, leaves, tree)(*args)

    def lower(self, *args: Any) -> "_Ahead":
        """As of what `jax.jit` returns: `lower(...).compile()` makes a program ahead of its first call."""
        return _Ahead(functools.partial(self._program, args, *jax.tree.flatten(args)))

    def _program(self, args: tuple, leaves: list, tree: Any) -> Callable:
        signature = tree, tuple((leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)) for leaf in leaves)
        program = self._programs.get(signature)
        if program is None:
            program = self._programs[signature] = self._made(args, signature)
        return program

    def _made(self, args: tuple, signature: Any) -> Callable:
        name = hashlib.sha256((self._identity + repr(signature)).encode()).hexdigest()[:32]
        path = self._folder / f"{self._name}-{name}"
        if (found := _load(path, args)) is not None:
            return found
        with only_one(path.with_suffix(".lock")):
            return _load(path, args) or self._compiled(path, args)

    def _compiled(self, path: Path, args: tuple) -> Callable:
        with _hits() as hits:
            compiled = self._jitted.lower(*args).compile()
        if hits:
            (self._folder / SALT).unlink(missing_ok=True)
        else:
            try:
                _store(path, compiled)
            except (*CANNOT, OSError) as error:
                log.debug("%s is not kept: %s", path.name, error)
        return compiled


def _salt(folder: Path) -> str:
    path = folder / SALT
    with contextlib.suppress(OSError), path.open("x") as file:  # it is there, or the disk is full
        file.write(secrets.token_hex(4))
    return path.read_text() if path.exists() else ""


class _Ahead(NamedTuple):
    compile: Callable[[], Callable]


def _store(path: Path, compiled: Any) -> None:
    payload, _, out_tree = serialize_executable.serialize(compiled)
    content = pickle.dumps((payload, jax.tree.unflatten(out_tree, range(out_tree.num_leaves))))
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(hashlib.sha256(content).digest() + content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # of a disk that is full
    kept = sorted(
        (one for one in path.parent.iterdir() if one.name != SALT), key=lambda one: one.stat().st_mtime, reverse=True
    )
    total = 0
    for one in kept:
        total += one.stat().st_size
        if total > MOST_BYTES:
            one.unlink(missing_ok=True)


def _load(path: Path, args: tuple) -> Callable | None:
    """A program that was kept; None if there is none, or it is damaged, or not only ours to write."""
    try:
        with path.open("rb") as file:
            if not _own(os.fstat(file.fileno())):
                log.warning("the program %s could have been written by others: it is not used", path)
                return None
            content = file.read()
        os.utime(path)
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        log.warning("the program %s is damaged: it is compiled again", path)
        return None
    payload, out = pickle.loads(content[32:])
    in_tree, out_tree = jax.tree.structure((args, {})), jax.tree.structure(out)
    devices = jax.devices()[:1]
    try:
        return serialize_executable.deserialize_and_load(payload, in_tree, out_tree, execution_devices=devices)
    except CANNOT as error:
        log.warning("the program %s cannot be loaded (%s): it is compiled again", path, str(error).partition("\n")[0])
        return None


def _own_folder(path: Path) -> bool:
    """Makes it if it is not there. Whether it is a folder that nobody else can read or write."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path.is_dir() and not path.is_symlink() and _own(path.stat())
    except OSError:
        return False


def _own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


@contextlib.contextmanager
def _hits() -> Iterator[list[str]]:
    """Collects that this thread found something in XLA's cache."""
    found, thread = [], threading.get_ident()

    def listen(event: str, **_: Any) -> None:
        if event == HIT and threading.get_ident() == thread:
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_listener(listen)


# --- that one process compiles what others wait for


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds a lock file where one can be; goes on without it after a while: whoever holds it may have been stopped."""
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _wait_for(held.enter_context(path.open("w")))
        yield


def _wait_for(file: IO[str]) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.1)


# --- what a program follows from


class Untold(Exception):
    """It can't be said what a function closes over."""


def _world() -> bytes:
    """All but the function: the code around it, versions, flags, the backend and the processor's abilities."""
    package, device = Path(__file__).parent, jax.devices()[0]
    sources = [file.read_bytes() for pattern in SOURCES for file in sorted(package.glob(pattern))]
    flags = {name: value for name, value in os.environ.items() if name.startswith(("XLA_", "LIBTPU"))}
    chosen = {name: value for name, value in jax.config.values.items() if "cache" not in name}
    processor = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor += sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    told = [
        [(name, metadata.version(name)) for name in PACKAGES],
        platform.python_version(),
        sorted(flags.items()),
        sorted(chosen.items(), key=lambda item: item[0]),
        [device.platform, device.device_kind, device.client.platform_version, jax.device_count()],
        processor,
    ]
    return hashlib.sha256(b"\0".join([*sources, repr(told).encode()])).digest()


@functools.cache
def _digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _parts(thing: Any, seen: dict[int, tuple[int, Any]]) -> Any:
    """What a value is, in words that are equal for equal values only. Raises Untold.

    seen: by `id`, values that were told already, their number and themselves: no other gets the same `id`.
    """
    if thing is None or isinstance(thing, bool | int | float | str | bytes | np.dtype):
        return repr(thing)
    if isinstance(thing, type):
        return f"{thing.__module__}.{thing.__qualname__}"
    if isinstance(thing, ModuleType):
        return thing.__name__
    if id(thing) in seen:
        return f"again {seen[id(thing)][0]}"
    seen[id(thing)] = len(seen), thing
    kind = f"{type(thing).__module__}.{type(thing).__qualname__}"

    def parts(values: Any) -> list:
        return [_parts(value, seen) for value in values]

    if isinstance(thing, np.ndarray | np.generic | jax.Array):
        array = np.asarray(thing)
        return [kind, str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(thing, tuple | list):
        return [kind, *parts(thing)]
    if isinstance(thing, Mapping | MappingProxyType):
        return [kind, *parts(sorted(thing.items()))]
    if dataclasses.is_dataclass(thing):
        return [kind, *parts(getattr(thing, field.name) for field in dataclasses.fields(thing) if field.compare)]
    if isinstance(thing, functools.partial):
        return [kind, *parts((thing.func, thing.args, thing.keywords))]
    wrapped = getattr(thing, "__wrapped__", None)
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        code = thing.__code__
        own = [f"{thing.__module__}.{thing.__qualname__}", code.co_firstlineno, code.co_code]
        file = Path(code.co_filename)
        if Path(__file__).parent in file.parents:  # of ours; of libraries the version says enough
            own.append(_digest_of(file))
        return [*own, *parts((cells, thing.__defaults__, thing.__kwdefaults__ or {}))]
    if wrapped is not None:  # what jax.jit and others make of a function
        return [kind, *parts((wrapped,))]
    raise Untold(f"{thing!r:.80}")
