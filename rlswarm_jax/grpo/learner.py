"""The train step: a batch of judged completions in, a better policy out."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from rlswarm_jax import parallel, randomness
from rlswarm_jax.grpo import losses, objective
from rlswarm_jax.grpo.objective import Objective
from rlswarm_jax.qwen import lora, model, peft
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.lora import LoraConfig
from rlswarm_jax.qwen.model import Forward, Params, Remat
from rlswarm_jax.qwen.weights import digest

Metrics = dict[str, Array]
Optimizer = Literal["adamw", "adamw_bf16", "adafactor"]
Sums = tuple[tuple[Array, Metrics], Params]  # loss, what metrics are made of, and the gradient, over tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig(Objective):
    """What the loss and the optimiser need to know. `temperature` is the sampling temperature of the completions.

    The learning rate falls linearly from the first of `decay_rounds` rounds to `decay_to` of itself in the last one;
    with 0 of them it stays as it is. dtype, remat: as `model.Forward` has them. optimizer: see `make_optimizer`.
    lora: of the adapter that is trained in place of the weights, if there is one.
    """

    learning_rate: float
    temperature: float
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    adam_b2: float = 0.99
    decay_rounds: int = 0
    decay_to: float = 1.0
    dtype: str = "float32"
    remat: Remat = "auto"
    optimizer: Optimizer = "adamw"
    lora: LoraConfig | None = None

    @property
    def forward(self) -> Forward:
        return Forward("" if self.dtype == "float32" else self.dtype, self.remat)


@flax.struct.dataclass
class Reference:
    """An earlier policy. epoch: int32 scalar, of `reference_every` rounds each, in which it was taken."""

    params: Params
    epoch: Array


@flax.struct.dataclass
class TrainState:
    """params: what is trained, the policy or an adapter of it, float32. opt_state: optax's. step: int32 scalar, updates
    made so far.
    """

    params: Params
    opt_state: Any
    step: Array
    reference: ClassVar[Any] = None  # but of an `AnchoredState`


@flax.struct.dataclass
class AnchoredState(TrainState):
    """reference: what the loss keeps the policy near to; as large as `params`. (No field of a state that has none: what
    checkpoints hold would be another form.)
    """

    reference: Reference | None = None  # type: ignore[misc]


def state_hash(state: TrainState, base: bytes = b"") -> bytes:
    """32 bytes that stand for a state: SHA-256 over the digest of its parameters and that of all else, so that the
    parameters can be shown alone.

    base: the digest of the weights beneath an adapter. The adapter's then stands for both: SHA-256 over the two.
    """
    rest = (state.opt_state, state.step, *([] if state.reference is None else [state.reference]))
    params = digest(state.params)
    params = hashlib.sha256(base + params).digest() if base else params
    return hashlib.sha256(params + digest(rest)).digest()


@flax.struct.dataclass
class Batch:
    """Completions to learn from, packed into X sequences of T slots (`tiles`); B rows, as many in each sequence, in the
    order of the sequences. Rows with `completion_lengths_B == 0` only fill the shape, as slots of prompt 0 do.

    tokens_XT, positions_XT: `[X, T]` int32. prompts_XT: which of the sequence's prompts a slot belongs to, from 1.
    rows_XT: which of its completions, from 1; 0 in a prompt. targets_XT: the token that comes next, in a completion.
    starts_B: `[B]` int32, a completion's first slot. completion_lengths_B: `[B]` int32, in tokens, the end of sequence
    included.
    advantages_B: `[B]` float32. Log-probs are `[B, C]` float32, at the sampling temperature; C tokens are in a
    completion at most.
    old_logprobs_BC: of the proximal policy, which the ratio is taken to. old_known_B: `[B]` bool, false where that is
    the current one (ratio 1).
    external_B: `[B]` bool, whether a peer has sampled the row.
    behaviour_logprobs_BC: of the policy that sampled. behaviour_known_B: `[B]` bool, false where that is taken to be
    the proximal one (weight 1), as it is everywhere if there are none.
    reference_logprobs_BC: of the policy that this one is kept near to, if there is one.
    entropy_floor_B: `[B]` float32, nats, the same for all: the surrogate is of tokens of at least so much.
    """

    tokens_XT: Array
    positions_XT: Array
    prompts_XT: Array
    rows_XT: Array
    targets_XT: Array
    starts_B: Array
    completion_lengths_B: Array
    advantages_B: Array
    old_logprobs_BC: Array
    old_known_B: Array
    external_B: Array
    behaviour_logprobs_BC: Array | None = None
    behaviour_known_B: Array | None = None
    reference_logprobs_BC: Array | None = None
    entropy_floor_B: Array | None = None

    @property
    def max_new_tokens(self) -> int:
        return self.old_logprobs_BC.shape[1]


def learning_rate(config: LearnerConfig, round_: int) -> float:
    """Of a round, counted from 0; whoever missed some, or had nothing to learn in them, has that of the others."""
    if not config.decay_rounds:
        return config.learning_rate
    done = min(1.0, round_ / max(1, config.decay_rounds - 1))
    return config.learning_rate * (1.0 + done * (config.decay_to - 1.0))


def make_optimizer(config: LearnerConfig) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101) behind a bound on the gradient's norm, at a learning rate of -1: a step scales it.

    adamw_bf16 keeps the first moment in bfloat16: 6 bytes a weight for 8. adafactor (arXiv:1804.04235, algorithm 4,
    without its own step sizes) keeps the means of rows and columns of a matrix's second moment, and no first moment.
    """
    scale = {
        "adamw": lambda: optax.scale_by_adam(b2=config.adam_b2),
        "adamw_bf16": lambda: optax.scale_by_adam(b2=config.adam_b2, mu_dtype=jnp.bfloat16),
        "adafactor": lambda: optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)),
    }[config.optimizer]()
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm), scale, optax.add_decayed_weights(config.weight_decay)
    )


def completion_logprobs(
    params: Params, batch: Batch, model_config: QwenConfig, temperature: float, how: Forward = model.PLAIN
) -> tuple[Array, Array]:
    """Log-prob of every completion token and the entropy it was drawn from, each `[B, C]` float32.

    Values behind a completion's end are meaningless: mask them.
    """
    seen_XTS = batch.prompts_XT[:, :, None] == batch.prompts_XT[:, None]
    seen_XTS &= (batch.rows_XT[:, None] == 0) | (batch.rows_XT[:, :, None] == batch.rows_XT[:, None])
    states_XTD = model.trained_states(params, model_config, batch.tokens_XT, batch.positions_XT, seen_XTS, how)
    targets_XT = jnp.where(batch.rows_XT > 0, batch.targets_XT, -1)  # of prompts nothing is asked
    flat = states_XTD.reshape(-1, states_XTD.shape[-1]), targets_XT.reshape(-1)
    sequences, width = batch.tokens_XT.shape
    at_XRC = batch.starts_B.reshape(sequences, -1, 1) + jnp.arange(batch.max_new_tokens)
    at_XX = jnp.minimum(at_XRC, width - 1).reshape(sequences, -1)

    def of_rows(values_X: Array) -> Array:
        values_XX = jnp.take_along_axis(values_X.reshape(sequences, width), at_XX, axis=1)
        return values_XX.reshape(-1, batch.max_new_tokens)

    logprobs_X, entropy_X = losses.chunked_logprobs(params, *flat, temperature, how=how)
    return of_rows(logprobs_X), of_rows(entropy_X)


def loss_sums(
    params: Params, batch: Batch, model_config: QwenConfig, config: LearnerConfig, how: Forward | None = None
) -> tuple[Array, Metrics]:
    """The loss *summed* over a tile, before it is divided, and sums of what the metrics are made of."""
    how = how or config.forward
    logprobs_BC, entropy_BC = completion_logprobs(params, batch, model_config, config.temperature, how)
    return objective.loss_sums(logprobs_BC, entropy_BC, batch, config)


def first_adapter(config: QwenConfig, about: LoraConfig) -> lora.Adapter:
    """What an adapter is before the first update, the same for everybody."""
    if about.path:
        return peft.read(Path(about.path), config, about)
    return lora.init(config, about, _lora_key("init"))


def _like(x: Any, sharding: Any = None) -> jax.ShapeDtypeStruct:
    """The same shape and type, wherever."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _lora_key(what: str) -> Array:
    return randomness.wrap(randomness.key_data("sample", "lora", what))


@dataclasses.dataclass(frozen=True)
class Learner:
    """The train step of a model: sums over any number of tiles, each of any shape, and one update from them.

    mesh: split each tile over its devices (`parallel.row_shards` divides B); one device without. backend: how, as
    `parallel.data_parallel` takes it. base: the weights beneath the adapter, if that is what is trained; they are where
    the mesh wants them. jit: what compiles on one device, such as `compilation.Programs.jit`.
    """

    config: LearnerConfig
    model: QwenConfig
    mesh: Mesh | None = None
    backend: str = "shard_map"
    base: Params | None = dataclasses.field(default=None, compare=False, repr=False)
    jit: Callable[..., Any] = dataclasses.field(default=jax.jit, compare=False)

    def init(self, params: Params) -> TrainState:
        """A state before its first update, laid out over the mesh if there is one; its arrays are its own.

        Raises ValueError for an adapter's directory that is not one of this model.
        """
        if self.config.lora is not None:
            params = first_adapter(self.model, self.config.lora)
        init, zero = make_optimizer(self.config).init, jnp.zeros((), jnp.int32)
        if self.mesh is None:
            params = jax.tree.map(jnp.array, params)
            opt_state = init(params)
        else:
            params, zero = jax.tree.map(jnp.copy, parallel.place(params, self.mesh)), parallel.place(zero, self.mesh)
            layout = parallel.shardings(jax.eval_shape(init, params), self.mesh)
            opt_state = jax.jit(init, out_shardings=layout)(params)
        state = TrainState(params, opt_state, zero)
        if not self.config.keeps_reference:
            return state
        return AnchoredState(params, opt_state, zero, Reference(*jax.tree.map(jnp.copy, (params, zero))))

    def sums(self, state: TrainState, tile: Batch) -> Sums:
        """`((loss, sums), gradients)` of a tile, over its tokens, on all devices."""
        return self._sums(self._of(state.params, state.step), tile)

    def _of(self, params: Params, step: Array | None = None) -> Any:
        """What a program needs to compute with the policy."""
        return params if self.config.lora is None else (self.base, params, step)

    def policy(self, params: Params, merge: bool = True) -> Params:
        """A model's parameters, of what is trained: with the adapter in the weights, or beside them."""
        if self.config.lora is None:
            return params
        assert self.base is not None, "an adapter is of a base"
        join = lora.merged if merge else lora.attached
        return join(self.base, params, self.config.lora)

    def add(self, total: Sums, more: Sums) -> Sums:
        """Both together. `total` is used up."""
        return self._add(total, more)

    def apply(self, state: TrainState, total: Sums, rate: float) -> tuple[TrainState, Metrics]:
        """The state after one update, and metrics, which are float32 scalars. The arrays of `state` are used up.

        The loss is divided once, by what all tiles say together (`objective.aggregate`). Without a single token, or
        with no advantage that is learned from, nothing changes, not even Adam's momentum: `updates` is 0 then. Nor does
        it where the gradient is not finite, which `nonfinite` counts. rate: the learning rate.
        """
        return self._apply(state, total, np.float32(rate))

    def step(self, state: TrainState, tiles: Batch | Sequence[Batch], rate: float) -> tuple[TrainState, Metrics]:
        """One update from all of these tiles, one or more; see `apply`."""
        first, *others = [tiles] if isinstance(tiles, Batch) else tiles
        total = self.sums(state, first)
        for tile in others:
            total = self.add(total, self.sums(state, tile))
        return self.apply(state, total, rate)

    def logprobs(self, params: Params, batch: Batch) -> tuple[Array, Array]:
        """Of the completions under a policy, and the entropies they were drawn from, `[B, C]` float32 each."""
        return self._logprobs(self._of(params), batch)

    def ahead(self, state: TrainState, tiles: Sequence[Batch]) -> list[Callable[[], Any]]:
        """What compiles the programs of a step on tiles of these shapes, one each, in any order. Nothing changes.

        On one device nothing is computed either.
        """

        of = self._of(state.params, state.step)

        def update(total: Any) -> list[Callable[[], Any]]:
            return [
                lambda: self._add.lower(total, total).compile(),
                lambda: self._apply.lower(state, total, np.float32(0)).compile(),
            ]

        if self.mesh is not None:
            total = jax.eval_shape(self.gradient, of, tiles[0])
            total = jax.tree.map(_like, total, parallel.shardings(total, self.mesh))
            return [*(functools.partial(self.sums, state, tile) for tile in tiles), *update(total)]

        def sums(tile: Batch) -> Any:
            return self._sums.lower(of, tile).compile()

        def first() -> None:
            total = jax.tree.map(_like, sums(tiles[0]).out_info)  # a kept program says it without being traced
            for make in update(total):
                make()

        return [first, *(functools.partial(sums, tile) for tile in tiles[1:])]

    # --- programs

    def gradient(self, of: Any, tile: Batch) -> Sums:
        """As `sums`, on one device and not compiled. of: see `_of`."""
        return jax.value_and_grad(self.loss, has_aux=True)(*self._split(of), tile)

    def loss(self, params: Params, frozen: Any, tile: Batch) -> tuple[Array, Metrics]:
        return loss_sums(self._joined(params, frozen, tile), tile, self.model, self.config, self._forward)

    @functools.cached_property
    def _forward(self) -> Forward:
        how = self.config.forward
        if self.mesh is None or not parallel.is_sharded(self.mesh):
            return how
        at = parallel.Gathered(self.mesh)
        return dataclasses.replace(how, weights=at.weights, rows=at.rows, by_rows=at.by_rows)

    def _split(self, of: Any) -> tuple[Params, Any]:
        return (of, None) if self.config.lora is None else (of[1], (of[0], of[2]))

    def _joined(self, params: Params, frozen: Any, tile: Batch) -> Params:
        adapter = self.config.lora
        if adapter is None:
            return params
        base, step = frozen
        keys_X = None
        if adapter.dropout and step is not None:
            keys_X = lora.dropout_keys(_lora_key("dropout"), step, tile.tokens_XT)
        return lora.attached(base, params, adapter, keys_X)

    @functools.cached_property
    def _sums(self) -> Any:
        def summed(of, batch):
            return parallel.total(self.gradient(of, batch), self.mesh)

        return self.jit(summed) if self.mesh is None else parallel.data_parallel(summed, self.mesh, self.backend)

    @functools.cached_property
    def _add(self) -> Any:
        return self.jit(parallel.add, donate_argnums=0)

    @functools.cached_property
    def _apply(self) -> Any:
        optimizer = make_optimizer(self.config)

        def apply(state: TrainState, total: Sums, rate: Array) -> tuple[TrainState, Metrics]:
            (loss, sums), gradients = total
            divisor = jnp.maximum(sums["divisor"], 1.0)
            gradients = jax.tree.map(lambda g: g / divisor, gradients)
            grad_norm = optax.global_norm(gradients)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            updates = jax.tree.map(lambda u: -rate * u, updates)
            params = optax.apply_updates(state.params, updates)
            new = dataclasses.replace(state, params=params, opt_state=opt_state, step=state.step + 1)
            live, finite = sums["live"] > 0, jnp.isfinite(grad_norm)
            update = live & finite
            state = jax.tree.map(lambda after, before: jnp.where(update, after, before), new, state)
            return parallel.laid_out(state, self.mesh), objective.means(loss, sums) | {
                "updates": update.astype(jnp.float32),
                "nonfinite": (live & ~finite).astype(jnp.float32),
                "grad_norm": grad_norm,
                "update_norm": jnp.where(update, optax.global_norm(updates), 0.0),
                "step": state.step.astype(jnp.float32),
            }

        return self.jit(apply, donate_argnums=0)

    @functools.cached_property
    def _logprobs(self) -> Any:
        def logprobs(of, batch):
            params = self._joined(*self._split(of), batch)
            return completion_logprobs(params, batch, self.model, self.config.temperature, self._forward)

        return self.jit(logprobs) if self.mesh is None else parallel.split(logprobs, self.mesh, self.backend)
