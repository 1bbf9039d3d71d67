"""Tokenizers of models: loading them with checks, and refusing ids that a model has no embedding for."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from rome_jax.models import gguf_files
from rome_jax.models.config import ModelConfig
from rome_jax.models.families import FAMILIES
from rome_jax.models.locate import TOKENIZER_FILES, has_config, read_config


class TokenizerError(ValueError):
    """A tokenizer lacks files, does not fit the model, or cannot report which characters a token covers."""


def load_tokenizer(place: Path, config: ModelConfig) -> Any:
    """Loads the fast tokenizer of a stored model.

    Args:
      place: A directory in the Hugging Face format, or a GGUF file.
      config: The config of the model that the tokenizer belongs to.

    Raises:
      TokenizerError: If files are missing or damaged, the tokenizer has no character offsets, or its vocabulary has
        ids that the model does not have. Added tokens beyond the embeddings are only refused in a text that has them.
    """
    with _without_advice():
        import transformers  # noqa: F401  # slow to import, and needed only here
    if gguf_files.is_gguf(place):
        tokenizer = gguf_files.build_tokenizer(gguf_files.open_model(place))
    else:
        tokenizer = _load_directory(place, FAMILIES[config.family].exact_tokenizer)
    vocabulary, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    beyond = {token: id for token, id in vocabulary.items() if id >= config.vocab_size}
    if beyond.keys() - added.keys():
        raise TokenizerError(
            f"the tokenizer in {place} has ids up to {max(beyond.values())}, but the model has {config.vocab_size} "
            "embeddings: use the tokenizer of this model."
        )
    _check_merges(place, tokenizer, vocabulary.keys() - added.keys())
    return _bounded(tokenizer, beyond) if beyond else tokenizer


def _load_directory(directory: Path, exact: bool) -> Any:
    """Loads the tokenizer of a directory, and checks that it is fast.

    Args:
      directory: The directory.
      exact: Whether tokenizer.json alone decides; see `FamilySpec`.

    Raises:
      TokenizerError: As in `load_tokenizer`.
    """
    files = {name for name in TOKENIZER_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= files:
        # transformers would silently build a tokenizer without a vocabulary.
        raise TokenizerError(
            f"{directory} has no tokenizer: add the model's tokenizer.json, or its vocab.json and merges.txt."
        )
    from transformers import AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

    # transformers would read config.json itself, more strictly than this library does.
    stand_in = GPT2Config()
    if has_config(directory):
        stand_in.tokenizer_class = read_config(directory).get("tokenizer_class")
    try:
        if exact and "tokenizer.json" in files:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(
                str(directory), local_files_only=True
            )
        else:
            tokenizer = AutoTokenizer.from_pretrained(
                str(directory), config=stand_in, use_fast=True, local_files_only=True
            )
        tokenizer.get_vocab()
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
    return tokenizer


def _check_merges(place: Path, tokenizer: Any, tokens: Collection[str]) -> None:
    """Refuses a tokenizer without merges, which would encode every text byte by byte."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if (
        model.get("type") == "BPE"
        and not model["merges"]
        and any(len(token) > 1 for token in tokens)
    ):
        raise TokenizerError(
            f"the tokenizer in {place} has {len(tokens)} tokens but no merges: download its tokenizer.json, or its "
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
