"""Chunks of equal size, and the checks that all methods share."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax.data.request import EditRequest
from rome_jax.edit.config import ROMEConfig
from rome_jax.edit.stages import chunks
from rome_jax.edit.stages.chunks import RequestChunks, map_chunks

LENGTHS = [5, 1, 3, 1, 9]


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (2, ["bd", "ca", "ee"]),  # the last chunk repeats its items
        (3, ["bdc", "aea"]),
        (5, ["bdcae"]),
        (8, ["bdcae"]),  # no chunk is larger than the number of items
        (1, ["b", "d", "c", "a", "e"]),
    ],
)
def test_like_lengths_share_a_chunk_and_all_chunks_have_one_size(size, parts):
    assert RequestChunks.of(LENGTHS, size).split("abcde") == [list(part) for part in parts]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_results_are_in_the_order_of_the_items(size):
    def compute(items):
        array = jnp.array(items)
        return {"twice": 2 * array, "rows": jnp.stack([array, array + 1], axis=1)}

    result = map_chunks(compute, [10, 20, 30, 40, 50], LENGTHS, size, "edits")
    assert result["twice"].tolist() == [20, 40, 60, 80, 100]
    assert result["rows"].tolist() == [[10, 11], [20, 21], [30, 31], [40, 41], [50, 51]]


@pytest.mark.parametrize(("module", "kind"), [(np, np.ndarray), (jnp, jax.Array)])
def test_arrays_stay_where_the_function_leaves_them(module, kind):
    result = map_chunks(lambda items: (module.array(items),), [3, 1, 2], [3, 1, 2], 2, "edits")
    assert isinstance(result[0], kind) and result[0].tolist() == [3, 1, 2]


def test_a_split_serves_several_functions():
    split = RequestChunks.of(LENGTHS, 2)
    parts = [np.array(part) for part in split.split([1, 2, 3, 4, 5])]
    for power in (1, 2):
        found = split.map(lambda part, n=power: part**n, parts, "edits")
        assert found.tolist() == [n**power for n in (1, 2, 3, 4, 5)]


def test_the_bar_counts_items_not_fillers(capsys):
    map_chunks(np.array, [3, 1, 2], [3, 1, 2], 2, "MYEDIT", progress=True)
    shown = capsys.readouterr().err
    assert "MYEDIT" in shown and "3/3" in shown
    map_chunks(np.array, [3, 1, 2], [3, 1, 2], 2, "MYEDIT")
    assert capsys.readouterr().err == ""


def test_length_from_subject_counts_from_the_slot():
    request = EditRequest("In {} they speak", "a long name that does not count", "French")
    assert chunks.length_from_subject(request) == len("{} they speak") + len("French")


def test_arguments_are_checked_for_all_methods(model, requests):
    config = SimpleNamespace(layers=(0, 7))
    with pytest.raises(ValueError, match="layers=7 does not exist"):
        chunks.check_requests(model, requests, config)
    config.layers = (0,)
    chunks.check_requests(model, requests, config)
    with pytest.raises(ValueError, match="requests is empty"):
        chunks.check_requests(model, [], config)
    with pytest.raises(ValueError, match="chunk_size=0: give a number of 1 or more"):
        chunks.check_requests(model, requests, config, 0)


@pytest.mark.parametrize("second_moments", [None, {0: "C"}])
def test_every_layer_needs_a_second_moment(second_moments):
    chunks.check_moments(None, ROMEConfig((0,)), {0: "C"})
    chunks.check_moments(None, ROMEConfig((1,), mom2_adjustment=False), None)
    with pytest.raises(ValueError, match="no second moment of layer 1: collect it"):
        chunks.check_moments(None, ROMEConfig((1,)), second_moments)
