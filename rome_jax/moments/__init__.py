"""The second moment of the keys, C = E[k kᵀ]: collected over a corpus, kept in files, read again.

Files are read by `read` (a folder, a file of the original, or "published"), or by `load`, which takes a folder of ours.
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.data.corpus import Corpus, CorpusError, open_corpus
    from rome_jax.moments.collect import Counts, Limit, default_directory
    from rome_jax.moments.collect import collect as collect_second_moments
    from rome_jax.moments.files import accumulate, load, load_shipped, read, read_provenance, save
    from rome_jax.moments.key_sums import KeySums
    from rome_jax.moments.published import PUBLISHED, load_reference
    from rome_jax.moments.second_moment import MomentProvenance, SecondMoment

# Second moments
__all__ = [
    "MomentProvenance",
    "SecondMoment",
]
# Files
__all__ += [
    "PUBLISHED",
    "load",
    "load_reference",
    "load_shipped",
    "read",
    "read_provenance",
    "save",
]
# Collecting
__all__ += [
    "Corpus",
    "CorpusError",
    "Counts",
    "KeySums",
    "Limit",
    "accumulate",
    "collect_second_moments",
    "default_directory",
    "open_corpus",
]

_HOMES = {
    # Second moments
    "MomentProvenance": "rome_jax.moments.second_moment",
    "SecondMoment": "rome_jax.moments.second_moment",
    # Files
    "PUBLISHED": "rome_jax.moments.published",
    "load": "rome_jax.moments.files",
    "load_reference": "rome_jax.moments.published",
    "load_shipped": "rome_jax.moments.files",
    "read": "rome_jax.moments.files",
    "read_provenance": "rome_jax.moments.files",
    "save": "rome_jax.moments.files",
    # Collecting
    "Corpus": "rome_jax.data.corpus",
    "CorpusError": "rome_jax.data.corpus",
    "Counts": "rome_jax.moments.collect",
    "KeySums": "rome_jax.moments.key_sums",
    "Limit": "rome_jax.moments.collect",
    "accumulate": "rome_jax.moments.files",
    "collect_second_moments": "rome_jax.moments.collect:collect",
    "default_directory": "rome_jax.moments.collect",
    "open_corpus": "rome_jax.data.corpus",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
