"""Text to token ids and back, from the files of a checkpoint directory."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import tokenizers

# Small files that belong to the tokenizer and travel with a saved checkpoint.
COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
Message = Mapping[str, str]  # {"role": ..., "content": ...}
Prompt = str | Sequence[Message]  # raw text, or a conversation for the chat template


def _bytes_of_characters() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`), inverted."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()


class ChatRenderer(Protocol):
    """A chat template: a conversation to text. `thinking` is Qwen3's `enable_thinking`, None the template's default."""

    def __call__(self, messages: Sequence[Message], thinking: bool | None = None) -> str: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer.

    `files` holds the companion files as they were; `render_chat` turns a conversation into text, None where the
    checkpoint has no chat template.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    files: Mapping[str, bytes]
    render_chat: ChatRenderer | None = None

    def encode(self, prompt: Prompt, thinking: bool | None = None) -> list[int]:
        """Token ids of a prompt; no special tokens are added to raw text.

        thinking: whether a conversation's answer is to begin with thoughts, where the chat template can switch that.

        Raises ValueError where the ids cannot be right: none for non-empty text, ids the model has no embedding
        for, a conversation for a checkpoint without a chat template, or `thinking` where nothing heeds it.
        """
        if isinstance(prompt, str):
            if thinking is not None:
                raise ValueError("`thinking` is an option of the chat template: give the prompt as a conversation.")
        elif self.render_chat is None:
            raise ValueError("this checkpoint has no chat template: give the prompt as plain text.")
        else:
            prompt = self.render_chat(prompt, thinking)
        ids = self.backend.encode(prompt, add_special_tokens=False).ids
        if prompt and not ids:
            raise ValueError(f"the tokenizer turned the prompt {prompt[:40]!r} into no tokens at all.")
        if ids and max(ids) >= self.vocab_size:
            raise ValueError(f"the tokenizer made id {max(ids)}, but the model has {self.vocab_size} embeddings.")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens (end of sequence) left out."""
        return self.backend.decode(list(map(int, ids)), skip_special_tokens=True)

    def token_bytes(self) -> list[bytes]:
        """What each of the model's tokens adds to a text, `[V]`; nothing for special tokens and unused ids."""
        added = self.backend.get_added_tokens_decoder()
        byte_level = "ByteLevel" in json.dumps(json.loads(self.backend.to_str()).get("decoder"))

        def of(index: int) -> bytes:
            piece = self.backend.id_to_token(index)
            if piece is None or (index in added and added[index].special):
                return b""
            if byte_level and _BYTE_OF.keys() >= set(piece):
                return bytes(_BYTE_OF[character] for character in piece)
            return self.backend.decode([index], skip_special_tokens=True).encode()

        return [of(index) for index in range(self.vocab_size)]

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token, and so at least as many as a token has characters."""
        return max((len(piece.encode()) for piece in self.backend.get_vocab()), default=1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; equal where two nodes may exchange token ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]


def load_tokenizer(directory: Path, vocab_size: int) -> Tokenizer:
    """Reads `tokenizer.json` itself: `AutoTokenizer` of transformers 5 ignores it for Qwen and encodes to nothing.

    Raises ValueError if the file is missing or cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: a checkpoint directory needs it.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise ValueError(f"{path} is not a tokenizer.json this version can read: {error}.") from None
    present = [directory / name for name in COMPANION_FILES if (directory / name).exists()]
    return Tokenizer(backend, vocab_size, {p.name: p.read_bytes() for p in present}, _chat_renderer(directory))


def _chat_renderer(directory: Path) -> ChatRenderer | None:
    from rlswarm_jax.qwen import weights

    config = directory / "tokenizer_config.json"
    in_config = config.exists() and b'"chat_template"' in config.read_bytes()
    if not in_config and not (directory / "chat_template.jinja").exists():
        return None
    return weights.chat_renderer(directory)
