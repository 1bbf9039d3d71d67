"""The tokenizer of the factworld models: a small byte-level BPE, and the files that `transformers` loads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from rome_jax.files.artifacts import write_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
MODEL_MAX_LENGTH = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1536) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE with the pre-tokenization of GPT-2.

    The alphabet contains all 256 bytes, so that any text can be encoded and decodes exactly.

    Args:
      texts: Training texts; a few tens of thousands of documents are plenty.
      vocab_size: Number of tokens, including the 256 bytes and `<|endoftext|>` (id 0).

    Returns:
      A fast tokenizer of `transformers`, like that of a loaded model.

    Raises:
      ValueError: If `vocab_size` cannot hold the bytes and the special token.

    Example:
      >>> tokenizer = train_tokenizer(["a text"] * 9, vocab_size=260)
      >>> tokenizer.decode(tokenizer(" any text")["input_ids"])
      ' any text'
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for 256 bytes and {END_OF_TEXT}: give at least 257."
        )
    from transformers import PreTrainedTokenizerFast  # Slow to import.

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # Offsets include the leading space of a word, like those of the published GPT-2 tokenizer.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        model_max_length=MODEL_MAX_LENGTH,
    )


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: str | Path) -> None:
    """Writes the files that `transformers.AutoTokenizer.from_pretrained(directory)` reads.

    The files are tokenizer.json and tokenizer_config.json, and vocab.json and merges.txt for readers that build a GPT-2
    tokenizer from its parts. Together they take less than 150 KB.

    Args:
      tokenizer: A tokenizer from `train_tokenizer`.
      directory: Created if it does not exist. Files of the same names are overwritten.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    backend = tokenizer.backend_tokenizer
    backend.save(str(directory / "tokenizer.json"), pretty=False)
    backend.model.save(str(directory))
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "add_bos_token": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MODEL_MAX_LENGTH,
    }
    text = json.dumps(config, indent=2) + "\n"
    write_whole(directory / "tokenizer_config.json", text.encode())
