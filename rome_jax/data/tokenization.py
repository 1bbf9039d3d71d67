"""How texts become token ids: the one place that decides about special tokens and about the start of a target.

    prompt, document    begin + tokens of the text, where begin is what the tokenizer itself puts before a text
    continuation        tokens of a text that follows other text, such as a target after its prompt

Most byte-level tokenizers (GPT-2, GPT-NeoX, SmolLM2, Qwen) put nothing before a text. Those of Llama and Mistral put
the begin-of-text token there, and models that were trained with it need it. SentencePiece also adds a space to the
beginning of a text, which must not happen in the middle of one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rome_jax.files.checked import check

_ANCHOR = "\n"  # a text that no tokenizer merges with what follows it
_SENTENCEPIECE_SPACE = "▁"


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """Returns the tokens that a tokenizer puts before each text, such as the begin-of-text token; often none.

    Example:
      >>> begin_ids(model.tokenizer)
      ()
    """
    text = "a"
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    full = tokenizer(text)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenized prompt.

    Attributes:
      ids: The tokens, with those before the text.
      offsets: The characters [start, end) of each token; those before the text cover no character.
    """

    ids: list[int]
    offsets: list[tuple[int, int]]


def encode_prompts(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Tokenizes prompts and says which characters each token covers.

    Args:
      tokenizer: A fast tokenizer of `transformers`.
      texts: The prompts.

    Example:
      >>> (prompt,) = encode_prompts(model.tokenizer, ["Gothulf Punby"])
      >>> prompt.offsets
      [(0, 7), (7, 9), (9, 13)]
    """
    texts = list(check(tuple[str, ...], texts, "texts"))
    if not texts:
        return []
    begin = list(begin_ids(tokenizer))
    found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return [
        Encoded(begin + ids, [(0, 0)] * len(begin) + list(offsets))
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]


def prompt_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenizes prompts or documents, with the tokens that the tokenizer puts before a text.

    Args:
      tokenizer: A tokenizer of `transformers`.
      texts: The texts.

    Example:
      >>> [len(ids) for ids in prompt_ids(model.tokenizer, ["Gothulf Punby plays", "Rome"])]
      [4, 3]
    """
    begin = list(begin_ids(tokenizer))
    return [begin + ids for ids in bare_ids(tokenizer, texts)]


def bare_ids(tokenizer: Any, texts: Sequence[str], name: str = "texts") -> list[list[int]]:
    """Tokenizes texts as `prompt_ids`, without the tokens before them.

    Args:
      tokenizer: A tokenizer of `transformers`.
      texts: The texts; an empty one has no tokens.
      name: Name of the texts in messages.

    Raises:
      ValueError: If one is no text or not valid Unicode.

    Example:
      >>> [len(ids) for ids in bare_ids(model.tokenizer, ["Rome", ""])]
      [3, 0]
    """
    texts = list(check(tuple[str, ...], texts, name))
    # Without verbose=False, the tokenizer would warn of texts longer than the context.
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def continuation_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Tokenizes texts that follow other text.

    Args:
      tokenizer: A tokenizer of `transformers`.
      texts: The continuations, with their leading space where they have one.

    Returns:
      The tokens of each. A prompt's tokens with those of a continuation decode to both texts together.

    Example:
      >>> model.tokenizer.decode(continuation_ids(model.tokenizer, [" tennis"])[0])
      ' tennis'
    """
    if not _adds_space(tokenizer):
        return bare_ids(tokenizer, texts)
    (anchor,) = bare_ids(tokenizer, [_ANCHOR])
    return [ids[len(anchor) :] for ids in bare_ids(tokenizer, [_ANCHOR + text for text in texts])]


def continuation_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decodes tokens that follow other text, with their leading space; special tokens are kept.

    Example:
      >>> continuation_text(model.tokenizer, continuation_ids(model.tokenizer, [" tennis"])[0])
      ' tennis'
    """
    before = bare_ids(tokenizer, [_ANCHOR])[0] if _adds_space(tokenizer) else []
    text = tokenizer.decode([*before, *ids], clean_up_tokenization_spaces=False)
    return text[len(_ANCHOR) :] if before else text


def end_of_text(tokenizer: Any) -> int:
    """Returns the token that ends a text.

    Raises:
      ValueError: If the tokenizer has none.

    Example:
      >>> model.tokenizer.decode([end_of_text(model.tokenizer)])
      '<|endoftext|>'
    """
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no end-of-text token, which the method trains after each target: set "
            "tokenizer.eos_token to the token that ended the texts of the model's training."
        )
    return tokenizer.eos_token_id


def describe_tokenization(tokenizer: Any) -> dict[str, Any]:
    """Describes for results how texts were tokenized; empty if nothing is put before a text.

    Example:
      >>> describe_tokenization(model.tokenizer)
      {}
    """
    begin = begin_ids(tokenizer)
    return {"begin_tokens": tokenizer.convert_ids_to_tokens(list(begin))} if begin else {}


def _adds_space(tokenizer: Any) -> bool:
    """Returns whether a tokenizer adds a space to the beginning of a text, as SentencePiece does."""
    (ids,) = bare_ids(tokenizer, ["a"])
    (first,) = tokenizer.convert_ids_to_tokens(ids[:1])
    return first.startswith(_SENTENCEPIECE_SPACE)
