"""Weights as files that `transformers` or PEFT open, and the hash of such files: what is in a file is what is named."""

import dataclasses
from pathlib import Path

from rlswarm_jax.publish.targets import PublishError
from rlswarm_jax.qwen import peft
from rlswarm_jax.qwen.config import QwenConfig
from rlswarm_jax.qwen.lora import LoraConfig
from rlswarm_jax.qwen.naming import Tensors, assembled, tensors_hash
from rlswarm_jax.qwen.tensors import find_tensors, read_header
from rlswarm_jax.qwen.tokenizer import Tokenizer
from rlswarm_jax.qwen.weights import HEAD, save_checkpoint


@dataclasses.dataclass(frozen=True)
class Weights:
    """A node's: all, in the dtype that samples, so that their hash is what its records call them; or an adapter alone.

    tensors: in Hugging Face's layout, or PEFT's with an adapter, on the host.
    """

    tensors: Tensors
    adapter: LoraConfig | None = None

    @property
    def hash(self) -> bytes:
        return tensors_hash(self.tensors)


def save(directory: Path, weights: Weights, config: QwenConfig, tokenizer: Tokenizer, base: str) -> None:
    """base: what an adapter is for, as its config says. Raises SaveError if the files cannot be written."""
    if weights.adapter is not None:
        peft.save_tensors(directory, weights.tensors, weights.adapter, base)
        return
    config = dataclasses.replace(config, tie_word_embeddings=HEAD not in weights.tensors)

    def leaf(name: str, path: tuple, transposed: bool) -> object:
        return weights.tensors[name].T if transposed else weights.tensors[name]

    save_checkpoint(directory, config, assembled(config, leaf), tokenizer)


def hash_of(directory: Path) -> bytes:
    """Of the tensors in a folder's files, one after the other. Raises PublishError if none can be read."""
    try:
        alone = (directory / peft.TENSORS).exists() and (directory / peft.CONFIG).exists()
        stored = read_header(directory / peft.TENSORS) if alone else find_tensors(directory)
        return tensors_hash({name: one.map() for name, one in stored.items()})
    except (ValueError, OSError) as error:
        raise PublishError(f"there are no weights that can be read: {error}") from None
