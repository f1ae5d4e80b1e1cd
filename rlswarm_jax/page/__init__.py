"""A run as a page: who taught whom, and what can be checked; served while it goes on, or written out as files.

Whatever is shown is public: records, metrics, what the chain has. Nothing here loads jax: what takes the game (prompts,
scores found again) is asked of a process that does.
"""
