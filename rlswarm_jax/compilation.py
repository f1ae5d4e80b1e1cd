"""XLA's persistent compilation cache, on by default: what one process compiled, another does not compile again."""

import os
from pathlib import Path

import jax

LEAST_SECONDS = 0.3  # what compiles faster is not kept


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
