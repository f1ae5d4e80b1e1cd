import rlswarm_jax  # noqa: F401  (it says what is missing outside the environment)
