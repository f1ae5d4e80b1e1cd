"""Text to token ids and back, from the files of a checkpoint directory."""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from rlswarm_jax.qwen.chat import ChatRenderer, Message, read_chat
from rlswarm_jax.qwen.config import read_json

log = logging.getLogger("rlswarm_jax.qwen")
# What prompts and completions are built of (game/prompts.py): text, also where a tokenizer has it as a special token.
MARKS = "|:;~!#"
TAGS = ("think", "answer", "best", "answers", "critiques", "critique")
SPOKEN = frozenset({f"<{slash}{tag}>" for tag in TAGS for slash in ("", "/")} | set(MARKS))
# Small files that belong to the tokenizer and travel with a saved checkpoint.
COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
NAMING_FILES = ("tokenizer_config.json", "special_tokens_map.json")  # those that may name an end token
Prompt = str | Sequence[Message]  # raw text, or a conversation for the chat template


def _bytes_of_characters() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's `bytes_to_unicode`), inverted."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _bytes_of_characters()


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A checkpoint's tokenizer.

    `files` holds the companion files as they were; `render_chat` turns a conversation into text, None where the
    checkpoint has no chat template. end_token_ids: those that end a completion, whichever file names them.
    """

    backend: tokenizers.Tokenizer
    vocab_size: int
    files: Mapping[str, bytes]
    render_chat: ChatRenderer | None = None
    end_token_ids: tuple[int, ...] = ()

    def encode(self, prompt: Prompt, thinking: bool | None = None) -> list[int]:
        """Token ids of a prompt; no special tokens are added to raw text.

        thinking: whether a conversation's answer is to begin with thoughts, where the chat template can switch that.

        Raises ValueError where the ids cannot be right: none for non-empty text, ids the model has no embedding
        for, a conversation for a checkpoint without a chat template, or `thinking` where nothing heeds it.
        """
        if isinstance(prompt, str):
            if thinking is not None:
                raise ValueError("`thinking` is an option of the chat template: give the prompt as a conversation.")
        elif not _is_conversation(prompt):
            raise ValueError(
                f"a prompt is a text or a conversation, [{{'role': ..., 'content': ...}}], not {prompt!r:.80}."
            )
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
        """Text of token ids, control tokens (end of sequence) left out, and the tags that prompts ask for kept."""
        said = [index for index in map(int, ids) if index not in self.control_ids]
        return self.backend.decode(said, skip_special_tokens=False)

    @functools.cached_property
    def control_ids(self) -> frozenset[int]:
        """Tokens that are no text: the special ones and those that end a completion, but for what is spoken."""
        added = self.backend.get_added_tokens_decoder()
        control = [n for n, token in added.items() if token.special or n in self.end_token_ids]
        return frozenset(n for n in control if added[n].content.strip() not in SPOKEN)

    def token_bytes(self) -> list[bytes]:
        """What each of the model's tokens adds to a text, `[V]`; nothing for control tokens and unused ids."""
        byte_level = "ByteLevel" in json.dumps(json.loads(self.backend.to_str()).get("decoder"))

        def of(index: int) -> bytes:
            piece = self.backend.id_to_token(index)
            if piece is None or index in self.control_ids:
                return b""
            if byte_level and _BYTE_OF.keys() >= set(piece):
                return bytes(_BYTE_OF[character] for character in piece)
            return self.backend.decode([index], skip_special_tokens=False).encode()

        return [of(index) for index in range(self.vocab_size)]

    @functools.cached_property
    def longest_token(self) -> int:
        """Bytes of the longest token, and so at least as many as a token has characters."""
        return max((len(piece.encode()) for piece in self.backend.get_vocab()), default=1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits; equal where two nodes may exchange token ids."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:16]


def load_tokenizer(directory: Path, vocab_size: int, eos_token_ids: Sequence[int] = ()) -> Tokenizer:
    """Reads `tokenizer.json` itself: `AutoTokenizer` of transformers 5 ignores it for Qwen and encodes to nothing.

    What is set for a call in training (truncation, padding, dropout of merges) is not the model's, and left out.
    eos_token_ids: of the model's own files, to which those are added that the tokenizer's name.

    Raises ValueError if a file is missing or cannot be read.
    """
    path = directory / "tokenizer.json"
    if not path.exists():
        raise ValueError(f"{path} does not exist: a checkpoint directory needs it.")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every malformed file
        raise ValueError(f"{path} is not a tokenizer.json this version can read: {error}.") from None
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    named = {name: read_json(directory / name) for name in NAMING_FILES if (directory / name).exists()}
    _add_tokens(backend, named.get("tokenizer_config.json", {}), directory / "tokenizer_config.json")
    ends = _end_tokens(backend, vocab_size, eos_token_ids, named, directory)
    present = [directory / name for name in COMPANION_FILES if (directory / name).exists()]
    files = {path.name: path.read_bytes() for path in present}
    return Tokenizer(backend, vocab_size, files, read_chat(directory), ends)


def _add_tokens(backend: tokenizers.Tokenizer, fields: Mapping[str, Any], where: Path) -> None:
    """Adds the tokens that only `added_tokens_decoder` has. Raises ValueError where they cannot be so."""
    added = fields.get("added_tokens_decoder") or {}
    try:
        tokens = sorted((int(index), tokenizers.AddedToken(**token)) for index, token in added.items())
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: added_tokens_decoder is not ids and their tokens: {error}.") from None
    for index, token in tokens:
        if backend.token_to_id(token.content) is None:
            backend.add_tokens([token])
        if backend.token_to_id(token.content) != index:
            there = backend.token_to_id(token.content)
            raise ValueError(
                f"{where}: {token.content!r} has id {index}, but {there} by tokenizer.json: mend one of them."
            )


def _end_tokens(
    backend: tokenizers.Tokenizer,
    vocab_size: int,
    eos_token_ids: Sequence[int],
    named: Mapping[str, Mapping[str, Any]],
    directory: Path,
) -> tuple[int, ...]:
    """All tokens that some file says end a text. What cannot be one, or that there is none, is logged as a warning."""
    ends = list(eos_token_ids)
    for name, fields in named.items():
        token = fields.get("eos_token")
        content = token.get("content") if isinstance(token, dict) else token
        if content is None:
            continue
        if not isinstance(content, str):
            raise ValueError(f"{directory / name}: field 'eos_token' must be a token's text, not {token!r:.80}.")
        index = backend.token_to_id(content)
        if index is None:
            log.warning("%s names the end token %r, which tokenizer.json does not have.", directory / name, content)
        else:
            ends.append(index)
    outside = sorted({index for index in ends if not 0 <= index < vocab_size})
    if outside:
        log.warning(
            "%s names end tokens %s, outside the vocabulary of %d: they end nothing.", directory, outside, vocab_size
        )
    inside = tuple(dict.fromkeys(index for index in ends if index not in outside))
    if not inside:
        log.warning(
            "%s names no end token (eos_token_id in config.json or generation_config.json, eos_token in "
            "tokenizer_config.json): completions will all be as long as they may be.",
            directory,
        )
    return inside


def _is_conversation(prompt: Any) -> bool:
    messages = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) else ()
    return bool(messages) and all(isinstance(m, Mapping) and isinstance(m.get("role"), str) for m in messages)
