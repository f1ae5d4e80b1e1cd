"""The embedded model in two states: `base` knows its tasks, `spoiled` seldom uses what it knows (configs/tiny.py)."""

from pathlib import Path

BASE = Path(__file__).parent / "tiny-qwen3-base"
SPOILED = Path(__file__).parent / "tiny-qwen3"
