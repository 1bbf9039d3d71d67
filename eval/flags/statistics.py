"""Flags of the collection of second moments: layers, corpus, and batches."""

from __future__ import annotations

from absl import flags

from eval.flags import define
from rome_jax.data.corpus import Corpus, open_corpus
from rome_jax.moments import inputs, own_texts
from rome_jax.moments.limits import Limit

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
    "(wikimedia/wikipedia 20231101.en); another dataset of the Hugging Face hub; or self, texts that the model "
    "samples. Default: factworld for the factworld models, self for smollm2-135m, wikipedia for others.",
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
    "original; of self 192, or more for an MLP wider than 3,072 (576 for gpt2-xl); and everything of other corpora.",
)
define.alias("num_articles", "sample_size")
TOKENS = flags.DEFINE_list(
    "num_tokens",
    None,
    "Number of tokens to read, instead of --num_articles. eval.statistics_table takes several numbers; there 0 means "
    "the identity in place of C, and all means the whole corpus, or 192 texts of self.",
)
UNTIL_ERROR = flags.DEFINE_float(
    "until_error",
    None,
    "Error of C, between 0 and 1, at which the collection stops before --num_articles or --num_tokens are reached: 1 "
    "minus the cosine of the angle by which the direction C⁻¹ k is off. Default: no such limit.",
    lower_bound=0,
    upper_bound=1,
)
define.finite(UNTIL_ERROR)
LENGTH = flags.DEFINE_integer(
    "sequence_length",
    None,
    "Number of tokens after which an article is cut. Default: the model's context length, at most 2,048.",
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


def dataset_name(model_name: str) -> str:
    """Returns the name of --dataset, or of the default corpus of a model."""
    return DATASET.value or own_texts.default_corpus(model_name)


def read_limit(default_articles: int | None) -> Limit:
    """Returns how much of a corpus --num_articles, --num_tokens, and --until_error ask for.

    Args:
      default_articles: Number of articles if none of the first two flags is given; None means all.

    Raises:
      ValueError: As in `inputs.read_limit`.
    """
    return inputs.read_limit(ARTICLES.value, TOKENS.value, default_articles, UNTIL_ERROR.value)


def open_dataset(name: str) -> Corpus:
    """Opens a corpus other than self, which needs the model.

    Args:
      name: Name of the corpus; see `dataset_name`.

    Raises:
      ValueError: If there is no such corpus, it cannot be read, or --seed is given.
    """
    if flags.FLAGS["seed"].present:
        raise ValueError(f"--seed is only for --dataset={own_texts.NAME}: leave it out.")
    return open_corpus(
        name,
        config=DATASET_CONFIG.value,
        split=SPLIT.value,
        revision=REVISION.value,
        text_key=TEXT_KEY.value,
        sample_by=SAMPLE_BY.value,
    )
