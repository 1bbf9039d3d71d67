"""Parsing of the flags of `eval.layer_stats` and `eval.statistics_table`."""

import pytest

from rome_jax.moments.inputs import check_layers, read_layers, read_limit, read_limits
from rome_jax.moments.limits import Limit


def test_layers_are_named_in_several_ways(golden_model):
    assert read_layers("17", None, "m") == [17]
    assert read_layers("5, 6,8-10", None, "m") == [5, 6, 8, 9, 10]
    assert read_layers(None, (3, 4), "m") == [3, 4]
    config = golden_model("gpt2").config
    assert check_layers(read_layers("all", None, "m"), config) == list(range(config.num_layers))
    with pytest.raises(ValueError, match="no ROME layer is known for model 'm': give --layers"):
        read_layers(None, None, "m")
    with pytest.raises(ValueError, match="--layers=99 does not exist"):
        check_layers([99], config)
    for wrong in ("", "x", "3-", "-1", "5-3"):
        with pytest.raises(
            ValueError, match=f"--layers='{wrong}' names no layers of a model: give one"
        ):
            read_layers(wrong, None, "m")


def test_limits_are_those_of_the_flags_or_of_the_corpus():
    assert read_limit(None, None, 100_000) == Limit(articles=100_000)
    assert read_limit(None, None, None) == Limit()
    assert read_limit("0", None, 5) == read_limit("all", None, 5) == Limit()
    assert read_limit("7", None, 5) == Limit(articles=7)
    assert read_limit(None, ["9"], 5) == Limit(tokens=9)
    for articles, tokens in (("x", None), (None, ["1", "2"])):
        with pytest.raises(ValueError, match=r"give a whole number of [01] or more, or all"):
            read_limit(articles, tokens, 5)
    with pytest.raises(ValueError, match="both limit the corpus: leave one out"):
        read_limit("5", ["5"], 5)
    assert read_limits(["0", "8", "all"]) == [None, Limit(tokens=8), Limit()]
