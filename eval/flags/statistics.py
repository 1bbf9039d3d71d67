"""Flags of the collection of second moments: layers, corpus, and batches."""

from __future__ import annotations

from absl import flags

from eval.flags import define
from rome_jax.data.corpus import Corpus, open_corpus
from rome_jax.models.registry import SHIPPED

LAYERS = flags.DEFINE_string(
    "layers",
    None,
    "Layers whose keys are collected: one (17), several (5,6,7), a range (3-8), or all. Default: the layers that ROME "
    "edits in this model.",
)
DATASET = flags.DEFINE_string(
    "dataset",
    None,
    "Corpus: factworld; a .txt, .json, .jsonl, .parquet or .arrow file, or a folder of them; wikipedia "
    "(wikimedia/wikipedia 20231101.en); or another dataset of the Hugging Face hub. Default: factworld for the "
    "factworld models, wikipedia for others.",
)
DATASET_CONFIG = flags.DEFINE_string(
    "dataset_config",
    None,
    "Configuration of a dataset of the hub. Default: the dataset's own default.",
)
SPLIT = flags.DEFINE_string("dataset_split", "train", "Split of a dataset of the hub.")
REVISION = flags.DEFINE_string(
    "dataset_revision",
    None,
    "Branch, tag, or commit of a dataset of the hub. Default: the newest commit.",
)
TEXT_KEY = flags.DEFINE_string(
    "text_key", "text", "Field or column that holds the text; not used for .txt files."
)
SAMPLE_BY = flags.DEFINE_enum(
    "sample_by",
    "document",
    ["document", "paragraph", "line"],
    "Unit of a .txt file that counts as one article.",
    case_sensitive=False,
)
ARTICLES = flags.DEFINE_string(
    "num_articles",
    None,
    "Number of articles to read; 0 or all reads everything. Default: 100,000 of a dataset of the hub, as in the "
    "original, and everything of other corpora.",
)
define.alias("num_articles", "sample_size")
TOKENS = flags.DEFINE_list(
    "num_tokens",
    None,
    "Number of tokens to read, instead of --num_articles. eval.statistics_table takes several numbers; there 0 means "
    "the identity in place of C, and all means the whole corpus.",
)
LENGTH = flags.DEFINE_integer(
    "sequence_length",
    None,
    "Number of tokens after which an article is cut. Default: the model's context length.",
    lower_bound=1,
    upper_bound=define.MOST,
)
BATCH = flags.DEFINE_integer(
    "batch_tokens",
    4096,
    "Number of tokens per batch, whatever the sequence length. More is faster on a GPU and takes more memory.",
    lower_bound=1,
    upper_bound=define.MOST,
)
CHECKPOINT = flags.DEFINE_float(
    "checkpoint_minutes",
    5.0,
    "Minutes between saved states, from which a killed run resumes.",
    lower_bound=0,
    upper_bound=1e6,
)
define.finite(CHECKPOINT)
PUBLISHED = flags.DEFINE_bool(
    "published",
    False,
    "Download the original's Wikipedia statistics and report on them, instead of collecting.",
)
define.alias("published", "download")
COLLECTED = flags.DEFINE_enum(
    "to_collect",
    "mom2",
    ["mom2"],
    "Statistic to collect, C = E[k kᵀ]; a flag of the original that has only this value.",
    case_sensitive=False,
)


def open_dataset(model_name: str) -> Corpus:
    """Opens the corpus of --dataset, or the default corpus of a model.

    Args:
      model_name: Name of the model.

    Raises:
      ValueError: If there is no such corpus, or it cannot be read.
    """
    return open_corpus(
        DATASET.value or ("factworld" if model_name in SHIPPED else "wikipedia"),
        config=DATASET_CONFIG.value,
        split=SPLIT.value,
        revision=REVISION.value,
        text_key=TEXT_KEY.value,
        sample_by=SAMPLE_BY.value,
    )
