"""The second moment of the keys, C = E[k kᵀ]: collected over a corpus, kept in files, and read for a model.

`read` is the front door: it takes a directory or file, an .npz file of the original, "published", or None for the
second moments that come with the package. `choose` finds a source that has the requested layers, and `collect_own`
collects them over texts that the model samples. `load` reads directories and files of rome_jax only. AlphaEdit also
takes null spaces, which `read_null_spaces` reads from the file of its authors' code.

    second_moment   C of one layer, its provenance, and the whitening solve
    key_sums        accumulation over batches
    collect, state  accumulation over a corpus in one pass, and the state from which it resumes
    limits          how much of a corpus is read
    error_bar       the error of C, from two halves of a corpus
    own_texts       a corpus that the model samples
    files           the file format, layer_<n>.safetensors
    published       the original's .npz files and where they are published
    shipped         the second moments that come with the package
    sources         the front door
    null_space      the projections of AlphaEdit's authors
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.data.corpus import Corpus, CorpusError, open_corpus
    from rome_jax.moments.collect import collect as collect_second_moments
    from rome_jax.moments.collect import default_directory
    from rome_jax.moments.files import load, read_provenance, save
    from rome_jax.moments.key_sums import KeySums, accumulate
    from rome_jax.moments.limits import Limit
    from rome_jax.moments.null_space import NullSpace, read_null_spaces
    from rome_jax.moments.own_texts import self_corpus
    from rome_jax.moments.published import PUBLISHED, load_reference
    from rome_jax.moments.second_moment import MomentProvenance, SecondMoment
    from rome_jax.moments.shipped import load_shipped
    from rome_jax.moments.sources import Choice, Source, choose, collect_own, read
    from rome_jax.moments.state import Counts

# Second moments
__all__ = [
    "MomentProvenance",
    "NullSpace",
    "SecondMoment",
]
# Files
__all__ += [
    "PUBLISHED",
    "Choice",
    "Source",
    "choose",
    "load",
    "load_reference",
    "load_shipped",
    "read",
    "read_null_spaces",
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
    "collect_own",
    "collect_second_moments",
    "default_directory",
    "open_corpus",
    "self_corpus",
]

_HOMES = {
    # Second moments
    "MomentProvenance": "rome_jax.moments.second_moment",
    "NullSpace": "rome_jax.moments.null_space",
    "SecondMoment": "rome_jax.moments.second_moment",
    # Files
    "PUBLISHED": "rome_jax.moments.published",
    "Choice": "rome_jax.moments.sources",
    "Source": "rome_jax.moments.sources",
    "choose": "rome_jax.moments.sources",
    "load": "rome_jax.moments.files",
    "load_reference": "rome_jax.moments.published",
    "load_shipped": "rome_jax.moments.shipped",
    "read": "rome_jax.moments.sources",
    "read_null_spaces": "rome_jax.moments.null_space",
    "read_provenance": "rome_jax.moments.files",
    "save": "rome_jax.moments.files",
    # Collecting
    "Corpus": "rome_jax.data.corpus",
    "CorpusError": "rome_jax.data.corpus",
    "Counts": "rome_jax.moments.state",
    "KeySums": "rome_jax.moments.key_sums",
    "Limit": "rome_jax.moments.limits",
    "accumulate": "rome_jax.moments.key_sums",
    "collect_own": "rome_jax.moments.sources",
    "collect_second_moments": "rome_jax.moments.collect:collect",
    "default_directory": "rome_jax.moments.collect",
    "open_corpus": "rome_jax.data.corpus",
    "self_corpus": "rome_jax.moments.own_texts",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
