"""The sides of benchmarks/decode.py. Each is a worker process of its own, under the interpreter that has its library.

    python -m benchmarks.decode_sides SIDE DTYPE [CHECKPOINT]

A worker says hello with its versions, then reads one request a line and answers each with a line: JSON both ways.
`checkpoint` writes the random 0.5B one and `bandwidth` measures; these answer once. The others make completions.
Between requests a worker only waits for its pipe. At module level this file imports nothing but Python's own
library: torch in a process with JAX is crippled.
"""

import dataclasses
import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

# (prompts, completions of each, new tokens of each, seed) -> tokens made
Run = Callable[[Sequence[str], int, int, int], int]
PACKAGES = ("jax", "torch", "transformers", "gensyn-genrl", "google-tunix", "numpy")
HALF_B = {  # Qwen2.5-0.5B
    "model_type": "qwen2",
    "vocab_size": 151_936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
CHARACTERS = "abcdefghijklmnopqrstuvwxyz"  # of the prompts: one token each, in both models
CHAT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # adds no tokens to a prompt


class Unavailable(Exception):
    """This side cannot run this row; the message says why."""


# --- the sides


def ours(checkpoint: Path, dtype: str) -> Run:
    import jax.numpy as jnp

    from rlswarm_jax import qwen

    policy = qwen.load(checkpoint, jnp.dtype(dtype))
    endless = dataclasses.replace(policy.config, eos_token_ids=())  # whatever the files name: all are of full length
    policy = dataclasses.replace(policy, config=endless)

    def run(prompts, group, new_tokens, seed):
        options = {"group_size": group, "max_new_tokens": new_tokens, "temperature": 1.0, "seed": seed}
        return int(qwen.generate(policy, prompts, **options).lengths_PG.sum())

    return run


def hugging_face(checkpoint: Path, dtype: str, shared: bool = False) -> Run:
    """`generate`. With `shared` a prompt is prefilled once and its cache repeated, else once for each completion."""
    import torch
    import transformers

    model, tokenizer = _torch_model(checkpoint, dtype)

    @torch.inference_mode()
    def run(prompts, group, new_tokens, seed):
        torch.manual_seed(seed)
        ids = tokenizer(list(prompts), return_tensors="pt", add_special_tokens=False).input_ids.to(model.device)
        more: dict[str, Any] = {"num_return_sequences": group}
        if shared:
            cache = transformers.DynamicCache(config=model.config)
            model(ids[:, :-1], past_key_values=cache, logits_to_keep=1)
            cache.batch_repeat_interleave(group)
            ids, more = ids.repeat_interleave(group, 0), {"past_key_values": cache}
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        stop = {"max_new_tokens": new_tokens, "eos_token_id": None, "pad_token_id": 0}
        out = model.generate(ids, attention_mask=torch.ones_like(ids), **sampling, **stop, **more)
        made = out[:, ids.shape[1] :].cpu()
        tokenizer.batch_decode(made)
        return made.numel()

    return run


def genrl(checkpoint: Path, dtype: str) -> Run:
    """RL Swarm's own trainer: `generate` once for each of the group's completions, one after another."""
    import torch
    from genrl.trainer.grpo_trainer import GRPOLanguageTrainerModule, GRPOTrainerConfig

    model, tokenizer = _torch_model(checkpoint, dtype)
    tokenizer.chat_template = CHAT
    tokenizer.eos_token, tokenizer.pad_token = None, CHARACTERS[0]  # prompts are of one length: none is padded

    def run(prompts, group, new_tokens, seed):
        if group < 2:
            raise Unavailable("the trainer asserts that a group has two completions or more")
        torch.manual_seed(seed)
        config = GRPOTrainerConfig(dtype=dtype, max_new_tokens=new_tokens, num_generations=group)
        trainer = GRPOLanguageTrainerModule([model], config, processing_class=tokenizer, log_with="none")
        inputs = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in prompts]
        _, ids = trainer.generate(inputs, return_completion_ids=True)
        return sum(len(completion) for of_prompt in ids for completion in of_prompt)

    return run


def tunix(checkpoint: Path, dtype: str) -> Run:
    """Its vanilla sampler, a prompt repeated for each completion."""
    import importlib

    import jax.numpy as jnp
    import transformers
    from tunix.generate import sampler as tunix_sampler

    fields = json.loads((checkpoint / "config.json").read_text())
    family = f"tunix.models.{fields['model_type']}"
    library, params = importlib.import_module(f"{family}.model"), importlib.import_module(f"{family}.params")
    head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    config = library.ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=head_dim,
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=int(fields["rope_theta"]),
        norm_eps=fields["rms_norm_eps"],
        use_tied_embedding=fields["tie_word_embeddings"],
        dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(dtype),
    )
    model = params.create_model_from_safe_tensors(str(checkpoint), config, dtype=jnp.dtype(dtype))
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)
    tokenizer.pad_token = tokenizer.eos_token = CHARACTERS[-1]  # a prompt must not hold its padding
    cache = {name: getattr(config, name) for name in ("num_layers", "num_kv_heads", "head_dim")}

    samplers: dict[int, Any] = {}

    def run(prompts, group, new_tokens, seed):
        repeated = [prompt for prompt in prompts for _ in range(group)]
        size = len(prompts[0]) + new_tokens
        if size not in samplers:
            slots = tunix_sampler.CacheConfig(cache_size=size, **cache)
            samplers[size] = tunix_sampler.Sampler(model, tokenizer, slots)
        out = samplers[size](
            repeated,
            new_tokens,
            max_prompt_length=len(prompts[0]),
            temperature=1.0,
            top_p=1.0,
            eos_tokens=[fields["vocab_size"]],  # none
            seed=seed,
        )
        return sum(len(tokens) for tokens in out.tokens)

    return run


SIDES: dict[str, Callable[..., Run]] = {
    "ours": ours,
    "ours-bf16": lambda checkpoint, _: ours(checkpoint, "bfloat16"),
    "hf": hugging_face,
    "hf-shared": lambda checkpoint, dtype: hugging_face(checkpoint, dtype, shared=True),
    "hf-bf16": lambda checkpoint, _: hugging_face(checkpoint, "bfloat16", shared=True),
    "genrl": genrl,
    "tunix": tunix,
}


def _torch_model(checkpoint: Path, dtype: str) -> tuple[Any, Any]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    device = "cuda" if os.environ["DECODE_DEVICE"] == "gpu" else "cpu"
    return model.eval().to(device), transformers.PreTrainedTokenizerFast.from_pretrained(checkpoint)


# --- the checkpoints


def write_checkpoint(directory: Path) -> None:
    """Random float32 weights of Qwen2.5-0.5B's shape, with a tokenizer of one token a character and no end token."""
    import jax
    import tokenizers

    from rlswarm_jax.qwen import config, model, tokenizer, weights

    half_b = config.from_hf(HALF_B)
    vocab = {character: index for index, character in enumerate(CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    backend.decoder = tokenizers.decoders.Fuse()
    params = model.init_params(half_b, jax.random.key(0))
    weights.save_checkpoint(directory, half_b, params, tokenizer.Tokenizer(backend, half_b.vocab_size, {}))


# --- the roofline


def bandwidth(dtype: str) -> dict[str, float]:
    """GB/s: `read/*` of a large array, `matvec/*` of a batch of one through the weights of the 0.5B model."""
    if os.environ["DECODE_DEVICE"] == "gpu":
        return _best(_on_gpu(dtype))
    import numpy as np

    try:
        import torch
    except ImportError:
        torch = None
    threads = int(os.environ["OMP_NUM_THREADS"])
    if torch:
        torch.set_num_threads(threads)
    found = {}
    flat = np.ones(1 << 29, np.float32)  # 2 GiB
    parts, pool = np.array_split(flat, threads), ThreadPoolExecutor(threads)
    reads = {"read/numpy": (lambda: list(pool.map(np.sum, parts)), flat.nbytes)}
    if torch:
        tensor = torch.from_numpy(flat)
        reads["read/torch"] = (tensor.sum, flat.nbytes)
    found |= _best(reads)
    matrices, start = [], 0
    for rows, columns in _matrix_shapes():  # views of the array: as large as the model's, and nothing else in between
        matrices.append(flat[start : start + rows * columns].reshape(rows, columns))
        start += rows * columns
    vectors = {columns: np.ones(columns, np.float32) for _, columns in _matrix_shapes()}
    products = {"matvec/numpy": (lambda: [w @ vectors[w.shape[1]] for w in matrices], 4 * start)}
    if torch:
        weights = [torch.from_numpy(w) for w in matrices]
        inputs = {columns: torch.from_numpy(v)[None] for columns, v in vectors.items()}
        linear = torch.nn.functional.linear
        products["matvec/torch linear"] = (lambda: [linear(inputs[w.shape[1]], w) for w in weights], 4 * start)
        products["matvec/torch mv"] = (lambda: [w.mv(inputs[w.shape[1]][0]) for w in weights], 4 * start)
    return found | _best(products)


def _on_gpu(dtype: str) -> dict[str, tuple[Callable[[], Any], int]]:
    import jax
    import jax.numpy as jnp

    flat = jnp.ones(1 << 31, jnp.dtype(dtype))
    read = jax.jit(lambda x: x.sum(dtype=jnp.float32))
    return {"read/jax": (lambda: jax.block_until_ready(read(flat)), flat.nbytes)}


def _best(methods: dict[str, tuple[Callable[[], Any], int]], turns: int = 9) -> dict[str, float]:
    """GB/s by each method's fastest turn: a denominator must not be low because something else was running.

    One method after the other, and each warms up first: the threads of the one before may still be spinning.
    """
    found = {}
    for name, (run, size) in methods.items():
        seconds = []
        for _ in range(turns + 1):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        found[name] = size / min(seconds[1:]) / 1e9
    return found


def _matrix_shapes() -> Iterator[tuple[int, int]]:
    d, f = HALF_B["hidden_size"], HALF_B["intermediate_size"]
    kv = d // HALF_B["num_attention_heads"] * HALF_B["num_key_value_heads"]
    for _ in range(HALF_B["num_hidden_layers"]):
        yield from ((d, d), (kv, d), (kv, d), (d, d), (f, d), (f, d), (d, f))
    yield HALF_B["vocab_size"], d


# --- the process


def peak_memory_mb() -> float:
    """The process's high-water mark, weights included; on a GPU the device's instead."""
    if os.environ["DECODE_DEVICE"] == "gpu":
        if "torch" in sys.modules:
            return sys.modules["torch"].cuda.max_memory_allocated() / 1e6
        return sys.modules["jax"].devices()[0].memory_stats()["peak_bytes_in_use"] / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def serve(side: str, dtype: str, checkpoint: Path) -> Iterator[dict[str, Any]]:
    """What the worker says, line by line; it reads its requests from standard input."""
    try:
        run = SIDES[side](checkpoint, dtype)
        yield {"versions": versions()}
        for line in sys.stdin:
            request = json.loads(line)
            started = time.perf_counter()
            tokens = run(request["prompts"], request["group"], request["new_tokens"], request["seed"])
            yield {"seconds": time.perf_counter() - started, "tokens": tokens, "peak_mb": peak_memory_mb()}
    except (Unavailable, ImportError) as reason:
        yield {"unavailable": f"{type(reason).__name__}: {reason}"}


def main(side: str, dtype: str, checkpoint: str = "") -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    if side == "checkpoint":
        write_checkpoint(Path(checkpoint))
        said: Any = [{}]
    elif side == "bandwidth":
        said = [{"gb_per_s": bandwidth(dtype), "versions": versions()}]
    else:
        said = serve(side, dtype, Path(checkpoint))
    for answer in said:
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
