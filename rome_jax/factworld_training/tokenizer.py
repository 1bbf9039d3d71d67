"""A small byte-level BPE tokenizer, written as the directory that `transformers` loads."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END_OF_TEXT = "<|endoftext|>"
MODEL_MAX_LENGTH = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1536) -> Tokenizer:
    """Trains a byte-level BPE with GPT-2's pre-tokenization.

    All 256 bytes are in the alphabet, so any text can be encoded and is decoded exactly.

    Args:
        texts: training texts; a few tens of thousands of documents are plenty.
        vocab_size: tokens in all, the 256 bytes and `<|endoftext|>` (id 0) included.

    Returns:
        The tokenizer.

    Raises:
        ValueError: if `vocab_size` cannot hold the bytes and the special token.

    Example:
        >>> tokenizer = train_tokenizer(["a text"] * 9, vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode(" any text").ids)
        ' any text'
    """
    if vocab_size < 257:
        raise ValueError(
            f"vocab_size must be at least 257 (256 bytes and {END_OF_TEXT}); got {vocab_size}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # Offsets keep the leading space of a word, as those of the published GPT-2 tokenizer do.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes the files that `transformers.AutoTokenizer.from_pretrained(directory)` reads.

    Files: tokenizer.json, tokenizer_config.json, vocab.json and merges.txt (the last two for
    readers that build a GPT-2 tokenizer from its parts), together under 150 KB.

    Args:
        tokenizer: from `train_tokenizer`.
        directory: made if absent; files in it are overwritten.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    tokenizer.model.save(str(directory))
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
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """Reads back what `save_tokenizer` wrote.

    Raises:
        FileNotFoundError: if the directory has no tokenizer.json.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {directory}: save_tokenizer writes one")
    return Tokenizer.from_file(str(path))
