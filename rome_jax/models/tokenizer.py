"""Tokenizers of models: loading them with checks, and refusing ids that a model has no embedding for."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rome_jax.models.config import ModelConfig
from rome_jax.models.locate import TOKENIZER_FILES, has_config, read_config


class TokenizerError(ValueError):
    """A tokenizer lacks files, does not fit the model, or cannot report which characters a token covers."""


def load_tokenizer(directory: Path, config: ModelConfig) -> Any:
    """Loads the fast tokenizer of a directory.

    Args:
      directory: A directory in the Hugging Face format.
      config: The config of the model that the tokenizer belongs to.

    Raises:
      TokenizerError: If files are missing or damaged, the tokenizer has no character offsets, or its vocabulary has
        ids that the model does not have. Added tokens beyond the embeddings are only refused in a text that has them.
    """
    files = {name for name in TOKENIZER_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        # transformers would silently build a tokenizer without a vocabulary.
        raise TokenizerError(
            f"{directory} has no tokenizer: add the model's tokenizer.json, or its vocab.json and merges.txt."
        )
    with _without_advice():
        from transformers import AutoTokenizer, GPT2Config  # slow to import, and needed only here

    # transformers would read config.json itself, more strictly than this library does. Both families share a tokenizer.
    stand_in = GPT2Config()
    if has_config(directory):
        stand_in.tokenizer_class = read_config(directory).get("tokenizer_class")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory),
            config=stand_in,
            use_fast=True,
            local_files_only=True,
        )
        vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    except Exception as error:  # a damaged file can raise anything
        why = " ".join(str(error).split())[:300]
        raise TokenizerError(
            f"the tokenizer in {directory} does not load ({why or type(error).__name__}): download it again."
        ) from error
    if not tokenizer.is_fast:
        raise TokenizerError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which does not report the characters of a "
            "token: convert it to a fast one (tokenizer.json)."
        )
    _check_merges(directory, tokenizer, vocabulary.keys() - added.keys())
    beyond = {token: id for token, id in vocabulary.items() if id >= config.vocab_size}
    if beyond.keys() - added.keys():
        raise TokenizerError(
            f"the tokenizer in {directory} has ids up to {max(beyond.values())}, but the model has {config.vocab_size} "
            "embeddings: use the tokenizer of this model."
        )
    return _bounded(tokenizer, beyond) if beyond else tokenizer


def _check_merges(directory: Path, tokenizer: Any, tokens: Collection[str]) -> None:
    """Refuses a tokenizer without merges, which would encode every text byte by byte."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if (
        model.get("type") == "BPE"
        and not model["merges"]
        and any(len(token) > 1 for token in tokens)
    ):
        raise TokenizerError(
            f"the tokenizer in {directory} has {len(tokens)} tokens but no merges: download its tokenizer.json, or its "
            "merges.txt, again."
        )


def _bounded(tokenizer: Any, beyond: Mapping[str, int]) -> Any:
    """Makes a tokenizer refuse texts with added tokens that the model has no embedding for, such as an added [PAD]."""
    kind = type(tokenizer)
    tokens = {id: token for token, id in beyond.items()}

    def checked(self, *arguments: Any, **options: Any) -> Any:
        encoded = kind.__call__(self, *arguments, **options)
        rows = encoded["input_ids"]
        rows = rows if rows and isinstance(rows[0], list) else [rows]
        if used := sorted({id for row in rows for id in row if id in tokens}):
            raise TokenizerError(
                f"the text contains {tokens[used[0]]!r} (id {used[0]}), for which the model has no embedding: leave it "
                "out, or give a model that was trained with this token."
            )
        return encoded

    # The class keeps its name, which save_pretrained writes down.
    tokenizer.__class__ = type(kind.__name__, (kind,), {"__call__": checked})
    return tokenizer


@contextlib.contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the advice of transformers, on import, to install PyTorch, whose models are not used here."""
    logger = logging.getLogger("transformers")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
