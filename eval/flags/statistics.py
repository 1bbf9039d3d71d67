"""Which keys second moments are collected of, and over which corpus."""

from __future__ import annotations

from absl import flags

from eval.flags import define
from rome_jax.data.corpus import Corpus, open_corpus
from rome_jax.models.registry import SHIPPED

LAYERS = flags.DEFINE_string(
    "layers",
    None,
    "One (17), several (5,6,7), a range (3-8) or all; by default those that ROME edits in this model.",
)
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "factworld; a .txt, .jsonl or .parquet file or a folder of them; wikipedia (wikimedia/wikipedia 20231101.en); or "
    "another dataset of the Hugging Face hub. By default factworld for the embedded models, wikipedia for others.",
)
DATASET_CONFIG = flags.DEFINE_string(
    "dataset_config", None, "Configuration of a dataset of the hub."
)
SPLIT = flags.DEFINE_string("dataset_split", "train", "Split of a dataset of the hub.")
REVISION = flags.DEFINE_string(
    "dataset_revision", None, "Branch, tag or commit of a dataset of the hub; default: its newest."
)
TEXT_KEY = flags.DEFINE_string("text_key", "text", "Field that holds the text, except in .txt.")
SAMPLE_BY = flags.DEFINE_enum(
    "sample_by",
    "document",
    ["document", "paragraph", "line"],
    "What an article is in a .txt file.",
    case_sensitive=False,
)
ARTICLES = flags.DEFINE_string(
    "num_articles",
    None,
    "Articles to read; 0, or all, is all. Default: 100,000 of a dataset of the hub, as the original, all of others.",
)
define.alias("num_articles", "sample_size")
TOKENS = flags.DEFINE_list(
    "num_tokens",
    None,
    "Tokens to read, instead of --num_articles; eval.statistics_table takes several numbers, 0 for the identity in "
    "place of C, and all.",
)
LENGTH = flags.DEFINE_integer(
    "sequence_length", None, "Tokens after which an article is cut; default: the model's context."
)
BATCH = flags.DEFINE_integer(
    "batch_tokens", 4096, "Tokens in a batch, whatever the sequence length; more for a GPU."
)
CHECKPOINT = flags.DEFINE_float(
    "checkpoint_minutes", 5.0, "Minutes between saved states, from which a killed run resumes."
)
PUBLISHED = flags.DEFINE_bool(
    "published", False, "Download the original's Wikipedia statistics, and report on them."
)
define.alias("published", "download")
COLLECTED = flags.DEFINE_enum(
    "to_collect",
    "mom2",
    ["mom2"],
    "Of the original: the statistic, which is C = E[k kᵀ].",
    case_sensitive=False,
)


def open_dataset(model_name: str) -> Corpus:
    """The corpus of --dataset, or the model's own.

    Raises:
      ValueError, OSError: as `open_corpus`.
    """
    return open_corpus(
        DATASET.value or ("factworld" if model_name in SHIPPED else "wikipedia"),
        config=DATASET_CONFIG.value,
        split=SPLIT.value,
        revision=REVISION.value,
        text_key=TEXT_KEY.value,
        sample_by=SAMPLE_BY.value,
    )
