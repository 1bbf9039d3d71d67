"""Evaluation of edits: records, scores of N edits in one batch, case files, summaries and tables.

dataset = load_dataset(DatasetName.CF, model_name="factworld-gpt2", limit=10)
requests = [record.request for record in dataset.records]
deltas = rome.compute_deltas(model, requests, config, second_moments=moments, key=key)
results = evaluate_records(model, DatasetName.CF, dataset.records, deltas)
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.evaluation.case_files import find_runs, read_case, read_cases
    from rome_jax.evaluation.columns import PAPER, Row, parse_columns
    from rome_jax.evaluation.comparison import select_algorithms
    from rome_jax.evaluation.datasets import (
        Dataset,
        load_dataset,
        parse_counterfact,
        parse_one_paraphrase,
        parse_zsre,
    )
    from rome_jax.evaluation.evaluate import evaluate_records
    from rome_jax.evaluation.generation import EssenceTarget, GenerationTests
    from rome_jax.evaluation.grid import Axis, Grid, Point
    from rome_jax.evaluation.metrics import (
        Estimate,
        accuracy,
        essence_perplexity,
        estimate,
        exact,
        harmonic_mean,
        magnitude,
        success,
    )
    from rome_jax.evaluation.record_types import CounterFactRecord, DatasetName, ZsRERecord
    from rome_jax.evaluation.run import EvaluationRun, load_generation_tests
    from rome_jax.evaluation.run_settings import Settings
    from rome_jax.evaluation.scoring import (
        MAX_TOKENS,
        Query,
        TargetScore,
        make_queries,
        perplexity,
        score_queries,
        target_nlls,
    )
    from rome_jax.evaluation.sequence_measurement import measure
    from rome_jax.evaluation.sequence_run import SequenceRun, run_sequence
    from rome_jax.evaluation.snippets import AttributeSnippets, Snippet, load_snippets, load_tfidf
    from rome_jax.evaluation.summaries import State, Summary, case_metrics, summarize
    from rome_jax.evaluation.sweep import Sweep
    from rome_jax.evaluation.tables import TableFormat, make_rows, render, select
    from rome_jax.evaluation.text_metrics import (
        fluency,
        ngram_entropy,
        reference_score,
        tfidf_vectorizer,
        word_tokens,
    )

# Records
__all__ = [
    "AttributeSnippets",
    "CounterFactRecord",
    "Dataset",
    "DatasetName",
    "Snippet",
    "ZsRERecord",
    "load_dataset",
    "load_snippets",
    "load_tfidf",
    "parse_counterfact",
    "parse_one_paraphrase",
    "parse_zsre",
]
# Scores
__all__ += [
    "MAX_TOKENS",
    "EssenceTarget",
    "GenerationTests",
    "Query",
    "TargetScore",
    "evaluate_records",
    "make_queries",
    "perplexity",
    "score_queries",
    "target_nlls",
]
# Metrics
__all__ += [
    "Estimate",
    "accuracy",
    "essence_perplexity",
    "estimate",
    "exact",
    "fluency",
    "harmonic_mean",
    "magnitude",
    "ngram_entropy",
    "reference_score",
    "success",
    "tfidf_vectorizer",
    "word_tokens",
]
# Runs of many records, with case files
__all__ += [
    "EvaluationRun",
    "Settings",
    "load_generation_tests",
]
# Summaries and tables
__all__ += [
    "PAPER",
    "Row",
    "State",
    "Summary",
    "TableFormat",
    "case_metrics",
    "find_runs",
    "make_rows",
    "parse_columns",
    "read_case",
    "read_cases",
    "render",
    "select",
    "summarize",
]
# Sweeps, comparisons and sequences
__all__ += [
    "Axis",
    "Grid",
    "Point",
    "SequenceRun",
    "Sweep",
    "measure",
    "run_sequence",
    "select_algorithms",
]

_HOMES = {
    # Records
    "AttributeSnippets": "rome_jax.evaluation.snippets",
    "CounterFactRecord": "rome_jax.evaluation.record_types",
    "Dataset": "rome_jax.evaluation.datasets",
    "DatasetName": "rome_jax.evaluation.record_types",
    "Snippet": "rome_jax.evaluation.snippets",
    "ZsRERecord": "rome_jax.evaluation.record_types",
    "load_dataset": "rome_jax.evaluation.datasets",
    "load_snippets": "rome_jax.evaluation.snippets",
    "load_tfidf": "rome_jax.evaluation.snippets",
    "parse_counterfact": "rome_jax.evaluation.datasets",
    "parse_one_paraphrase": "rome_jax.evaluation.datasets",
    "parse_zsre": "rome_jax.evaluation.datasets",
    # Scores
    "MAX_TOKENS": "rome_jax.evaluation.scoring",
    "EssenceTarget": "rome_jax.evaluation.generation",
    "GenerationTests": "rome_jax.evaluation.generation",
    "Query": "rome_jax.evaluation.scoring",
    "TargetScore": "rome_jax.evaluation.scoring",
    "evaluate_records": "rome_jax.evaluation.evaluate",
    "make_queries": "rome_jax.evaluation.scoring",
    "perplexity": "rome_jax.evaluation.scoring",
    "score_queries": "rome_jax.evaluation.scoring",
    "target_nlls": "rome_jax.evaluation.scoring",
    # Metrics
    "Estimate": "rome_jax.evaluation.metrics",
    "accuracy": "rome_jax.evaluation.metrics",
    "essence_perplexity": "rome_jax.evaluation.metrics",
    "estimate": "rome_jax.evaluation.metrics",
    "exact": "rome_jax.evaluation.metrics",
    "fluency": "rome_jax.evaluation.text_metrics",
    "harmonic_mean": "rome_jax.evaluation.metrics",
    "magnitude": "rome_jax.evaluation.metrics",
    "ngram_entropy": "rome_jax.evaluation.text_metrics",
    "reference_score": "rome_jax.evaluation.text_metrics",
    "success": "rome_jax.evaluation.metrics",
    "tfidf_vectorizer": "rome_jax.evaluation.text_metrics",
    "word_tokens": "rome_jax.evaluation.text_metrics",
    # Runs of many records, with case files
    "EvaluationRun": "rome_jax.evaluation.run",
    "Settings": "rome_jax.evaluation.run_settings",
    "load_generation_tests": "rome_jax.evaluation.run",
    # Summaries and tables
    "PAPER": "rome_jax.evaluation.columns",
    "Row": "rome_jax.evaluation.columns",
    "State": "rome_jax.evaluation.summaries",
    "Summary": "rome_jax.evaluation.summaries",
    "TableFormat": "rome_jax.evaluation.tables",
    "case_metrics": "rome_jax.evaluation.summaries",
    "find_runs": "rome_jax.evaluation.case_files",
    "make_rows": "rome_jax.evaluation.tables",
    "parse_columns": "rome_jax.evaluation.columns",
    "read_case": "rome_jax.evaluation.case_files",
    "read_cases": "rome_jax.evaluation.case_files",
    "render": "rome_jax.evaluation.tables",
    "select": "rome_jax.evaluation.tables",
    "summarize": "rome_jax.evaluation.summaries",
    # Sweeps, comparisons and sequences
    "Axis": "rome_jax.evaluation.grid",
    "Grid": "rome_jax.evaluation.grid",
    "Point": "rome_jax.evaluation.grid",
    "SequenceRun": "rome_jax.evaluation.sequence_run",
    "Sweep": "rome_jax.evaluation.sweep",
    "measure": "rome_jax.evaluation.sequence_measurement",
    "run_sequence": "rome_jax.evaluation.sequence_run",
    "select_algorithms": "rome_jax.evaluation.comparison",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
