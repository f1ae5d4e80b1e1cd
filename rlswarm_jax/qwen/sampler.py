"""Prompts and keys in, completions out: which arrays of which shapes are computed is decided here, for everybody."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlswarm_jax import parallel
from rlswarm_jax.qwen import model, sampling
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.model import Params
from rlswarm_jax.qwen.sampling import Completions, bucket

WAITING = 4  # completions in a tile for each of its rows, where rows are limited: few idle rows, and few prompts kept


class Prepared:
    """`model.prepare`, done once: the last copy that was made is kept, 2 GB for half a billion parameters."""

    _given: list[Any]
    _leaves: list[Any]  # keep their ids
    _made: Params

    def __init__(self) -> None:
        self.forget()

    def __call__(
        self, params: Params, dtype: Any, rows: int, made_of: Callable[[Params], Params] = lambda params: params
    ) -> Params:
        """`params`, or what is made of them, to sample `rows` completions at a time with, at least."""
        leaves = jax.tree.leaves(params)
        given = [np.dtype(dtype), rows == 1, *map(id, leaves)]
        if self._given != given:
            made = model.prepare(made_of(params), dtype, rows)
            if made is params:
                return made
            self._given, self._leaves, self._made = given, leaves, made
        return self._made

    def forget(self) -> None:
        self._given, self._leaves, self._made = [], [], {}


class Sampler:
    """Samples with whatever weights it is given, from programs of few shapes.

    Prompts come in tiles as wide as the longest asks for. In exact mode every completion is in a tile of `exact_rows`
    completions, one of each prompt, as wide as its own prompt asks for: no bit depends on what else is asked for.
    """

    def __init__(
        self,
        config: QwenConfig,
        *,
        widths: Sequence[int] = (),
        counts: Sequence[int] = (),
        rows: int = 0,
        exact_rows: int = 0,
        mesh: Mesh | None = None,
        backend: str = "shard_map",
        **options: Any,
    ):
        """
        Args:
          widths, counts: tokens of a prompt, and prompts, that tiles have room for; those of `sampling.bucket` by
            default, and for more prompts than these.
          rows: completions computed at a time on each device, while others wait; 0 is all.
          exact_rows: the tile of the exact mode on each device; 0 is the fast one.
          mesh, backend: the devices that rows are split over, and how (`parallel.split`); one without.
          options: of `sampling.make_sampler`.
        """
        run = sampling.make_sampler(config, rows=0 if exact_rows else rows, **options)
        self._run: Any = run if mesh is None else parallel.split(run, mesh, backend)
        self._widths, self._counts = sorted(widths), sorted(counts)
        self._mesh, self._shards = mesh, parallel.row_shards(mesh)
        self._rows, self._exact_rows = rows * self._shards, exact_rows * self._shards

    def __call__(self, params: Params, prompts: Sequence[Sequence[int]], keys_PGM: np.ndarray) -> Completions:
        """G completions of each prompt, as NumPy arrays. Raises PromptError for a prompt that no tile has room for.

        prompts: token ids. keys_PGM: `[P, G, 2]` uint32 key data, consumed.
        """
        found = list(self.parts(params, prompts, keys_PGM))
        whole = jax.tree.map(lambda *pieces: np.concatenate(pieces), *(out for _, out in found))
        return whole.of(np.argsort([prompt for part, _ in found for prompt in part]))

    def parts(
        self, params: Params, prompts: Sequence[Sequence[int]], keys_PGM: np.ndarray
    ) -> Iterator[tuple[list[int], Completions]]:
        """The same, some prompts at a time, with the numbers of those."""
        if self._exact_rows:
            yield from self._exactly(params, prompts, keys_PGM)
            return
        width, size = self.width(max(map(len, prompts))), self._at_once(*keys_PGM.shape[:2])
        for start in range(0, len(prompts), size):
            part = list(range(start, min(start + size, len(prompts))))
            tile = self._tile([prompts[p] for p in part], keys_PGM[part], width, size)
            yield part, jax.device_get(self._run(params, tile)).of(slice(len(part)))

    def compile(self, params: Params, count: int, group_size: int, width: int) -> None:
        """Ahead of time, what `count` prompts of at most `width` tokens need. params: arrays such as will come."""
        if self._exact_rows:
            count, group_size = self._exact_rows, 1
        else:
            count = self._size(self._at_once(count, group_size))
        keys_PGM = np.zeros((count, group_size, 2), np.uint32)
        tile = sampling.make_tile([[0]] * count, keys_PGM, prompt_slots=self.width(width))
        if self._mesh is None:
            self._run.lower(params, tile).compile()
        else:
            jax.block_until_ready(self._run(params, dataclasses.replace(tile, alive_PG=np.zeros_like(tile.alive_PG))))

    def _exactly(self, params, prompts, keys_PGM) -> Iterator[tuple[list[int], Completions]]:
        by_width: dict[int, list[int]] = {}
        for index, prompt in enumerate(prompts):
            by_width.setdefault(self.width(len(prompt)), []).append(index)
        for width, part in by_width.items():
            some, rows = [prompts[p] for p in part], self._exact_rows
            yield part, sampling.sample_exact(self._run, params, some, keys_PGM[part], prompt_slots=width, rows=rows)

    def _at_once(self, count: int, group_size: int) -> int:
        """Prompts in a tile, of so many."""
        return min(count, -(-WAITING * self._rows // group_size) or count)

    def width(self, longest: int) -> int:
        """Of a tile whose longest prompt has so many tokens."""
        room = [width for width in self._widths if width >= longest]
        return room[0] if room else self._widths[-1] if self._widths else bucket(longest)

    def _size(self, count: int) -> int:
        size = next((room for room in self._counts if room >= count), bucket(count))
        return -(-size // self._shards) * self._shards

    def _tile(self, prompts, keys_PGM: np.ndarray, width: int, count: int) -> sampling.Tile:
        return sampling.make_tile(prompts, keys_PGM, prompt_slots=width, num_prompts=self._size(count))
