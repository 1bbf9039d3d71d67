"""Causal tracing: which states of a forward pass carry a fact.

Example:
  Indirect effects of windows of three MLP outputs, [tokens, layers]:

  >>> from rome_jax.trace import TraceKind, TracePrompt, fit_noise, parse_noise, start, trace
  >>> prompt = TracePrompt.of(model.tokenizer, "Gothulf Punby plays the sport of", "Gothulf Punby")
  >>> noise = fit_noise(model, parse_noise("s3"), subjects=["Gothulf Punby"])
  >>> first, stop = prompt.span
  >>> runs = start(model, prompt, noise.draw(key, 2, stop - first, model.config.width))
  >>> effects = trace(runs, kind=TraceKind.MLP, window=3) - runs.corrupted_score
  >>> effects.shape
  (7, 6)
"""

from typing import TYPE_CHECKING

from rome_jax import _lazy

if TYPE_CHECKING:
    from rome_jax.trace.averages import AverageEffects, ClassAverage, TokenClass, average_effects
    from rome_jax.trace.best_states import Agreement, BestStates, agreement
    from rome_jax.trace.best_states import best_states as find_best_states
    from rome_jax.trace.corruption import Measure, Runs
    from rome_jax.trace.facts import FactsError, KnownFact, KnownFacts, open_facts, parse_facts
    from rome_jax.trace.folder import RunFolder
    from rome_jax.trace.noise import (
        Distribution,
        Noise,
        NoiseLevel,
        embedding_moments,
        fit_noise,
        parse_noise,
        subject_embedding_std,
    )
    from rome_jax.trace.prompt import TracePrompt
    from rome_jax.trace.protocol import Protocol, Series, find_prompt, subtract, trace_facts
    from rome_jax.trace.restore import TraceKind
    from rome_jax.trace.result import SkippedCase, TraceResult, load_trace, save_trace, traced
    from rome_jax.trace.screen import screen as screen_states
    from rome_jax.trace.screen import verify
    from rome_jax.trace.sweep import default_window, scores, start, trace

# Prompts and facts
__all__ = [
    "FactsError",
    "KnownFact",
    "KnownFacts",
    "TracePrompt",
    "open_facts",
    "parse_facts",
]
# Noise
__all__ += [
    "Distribution",
    "Noise",
    "NoiseLevel",
    "embedding_moments",
    "fit_noise",
    "parse_noise",
    "subject_embedding_std",
]
# One prompt
__all__ += [
    "Measure",
    "Runs",
    "TraceKind",
    "default_window",
    "scores",
    "screen_states",
    "start",
    "trace",
    "verify",
]
# Many facts
__all__ += [
    "Protocol",
    "RunFolder",
    "Series",
    "find_prompt",
    "subtract",
    "trace_facts",
]
# Results
__all__ += [
    "Agreement",
    "AverageEffects",
    "BestStates",
    "ClassAverage",
    "SkippedCase",
    "TokenClass",
    "TraceResult",
    "agreement",
    "average_effects",
    "find_best_states",
    "load_trace",
    "save_trace",
    "traced",
]

_HOMES = {
    # Prompts and facts
    "FactsError": "rome_jax.trace.facts",
    "KnownFact": "rome_jax.trace.facts",
    "KnownFacts": "rome_jax.trace.facts",
    "TracePrompt": "rome_jax.trace.prompt",
    "open_facts": "rome_jax.trace.facts",
    "parse_facts": "rome_jax.trace.facts",
    # Noise
    "Distribution": "rome_jax.trace.noise",
    "Noise": "rome_jax.trace.noise",
    "NoiseLevel": "rome_jax.trace.noise",
    "embedding_moments": "rome_jax.trace.noise",
    "fit_noise": "rome_jax.trace.noise",
    "parse_noise": "rome_jax.trace.noise",
    "subject_embedding_std": "rome_jax.trace.noise",
    # One prompt
    "Measure": "rome_jax.trace.corruption",
    "Runs": "rome_jax.trace.corruption",
    "TraceKind": "rome_jax.trace.restore",
    "default_window": "rome_jax.trace.sweep",
    "scores": "rome_jax.trace.sweep",
    "screen_states": "rome_jax.trace.screen:screen",
    "start": "rome_jax.trace.sweep",
    "trace": "rome_jax.trace.sweep",
    "verify": "rome_jax.trace.screen",
    # Many facts
    "Protocol": "rome_jax.trace.protocol",
    "RunFolder": "rome_jax.trace.folder",
    "Series": "rome_jax.trace.protocol",
    "find_prompt": "rome_jax.trace.protocol",
    "subtract": "rome_jax.trace.protocol",
    "trace_facts": "rome_jax.trace.protocol",
    # Results
    "Agreement": "rome_jax.trace.best_states",
    "AverageEffects": "rome_jax.trace.averages",
    "BestStates": "rome_jax.trace.best_states",
    "ClassAverage": "rome_jax.trace.averages",
    "SkippedCase": "rome_jax.trace.result",
    "TokenClass": "rome_jax.trace.averages",
    "TraceResult": "rome_jax.trace.result",
    "agreement": "rome_jax.trace.best_states",
    "average_effects": "rome_jax.trace.averages",
    "find_best_states": "rome_jax.trace.best_states:best_states",
    "load_trace": "rome_jax.trace.result",
    "save_trace": "rome_jax.trace.result",
    "traced": "rome_jax.trace.result",
}

__getattr__, __dir__ = _lazy.attach(__name__, _HOMES)
