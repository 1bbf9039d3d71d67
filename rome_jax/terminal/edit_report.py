"""The report of `eval.edit`: what an edit changed and what it left unchanged."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np

from rome_jax.data import samples
from rome_jax.data.request import EditRequest, fill, target_text
from rome_jax.data.tokenization import continuation_ids
from rome_jax.data.tokens import pad
from rome_jax.edit.delta import apply_delta, weight_changes
from rome_jax.edit.methods.rome import LayerEdit
from rome_jax.evaluation.scoring import prompt_ids, target_nlls
from rome_jax.factworld.facts import make_world
from rome_jax.models.generate import generate
from rome_jax.models.interventions import Delta
from rome_jax.models.logit_lens import logit_lens, top_tokens
from rome_jax.models.registry import SHIPPED, LanguageModel

CONTINUATION = 16  # tokens
SHOWN = 5  # prompts per group in the table; the summary counts all
CONTINUED = 2  # prompts per group for which continuations are shown
NO_ROOM = "(no room)"  # shown for prompts that fill the context


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts on which an edit is examined, in addition to its own prompt.

    Attributes:
      paraphrases: Prompts that should change too.
      neighbors: Prompts that should not change.
    """

    paraphrases: Sequence[str] = ()
    neighbors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What happened on a group of prompts.

    Attributes:
      count: The number of prompts.
      new_before, new_after: The number of prompts on which the new target is more likely than the true one.
      kept_before, kept_after: The number of prompts on which it is not. A prompt whose probabilities are not numbers
        counts as neither.
      true_before, true_after: Mean probability of the true target; NaN without prompts.
    """

    count: int
    new_before: int
    new_after: int
    kept_before: int
    kept_after: int
    true_before: float
    true_after: float

    @classmethod
    def of(cls, probabilities: np.ndarray) -> Outcome:
        """Returns the outcome of a table of probabilities.

        Args:
          probabilities: Float [B, 4]: of the new target before and after the edit, and of the true target.
        """
        new, true = probabilities[:, :2], probabilities[:, 2:]
        wins, kept = (new > true).sum(0).tolist(), (new <= true).sum(0).tolist()
        means = true.mean(0).tolist() if len(true) else (math.nan, math.nan)
        return cls(len(true), *wins, *kept, *means)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model before and after one edit.

    Attributes:
      model: The unedited model.
      delta: The edit.
    """

    model: LanguageModel
    delta: Delta

    @functools.cached_property
    def sides(self) -> tuple[tuple[LanguageModel, Delta | None], ...]:
        """The model and the delta of a forward pass before and after the edit; a dense delta is merged."""
        if self.delta.factored:
            return (self.model, None), (self.model, self.delta)
        params = apply_delta(self.model.params, self.delta)
        return (self.model, None), (self.model.replace(params=params), None)

    def probabilities(
        self, prompts: Sequence[str], targets: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the probability of each whole target after its prompt, before and after the edit.

        Args:
          prompts: B prompts.
          targets: One target per prompt.

        Returns:
          Float [B] before and [B] after the edit.
        """
        texts = [target_text(target) for target in targets]
        ids = continuation_ids(self.model.tokenizer, texts)
        counts = np.array([len(row) for row in ids])
        before, after = (
            np.exp(-counts * target_nlls(model, prompts, targets, deltas=deltas))
            for model, deltas in self.sides
        )
        return before, after

    def continuations(self, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
        """Returns the greedy continuations of each prompt, before and after the edit, up to the end of the text.

        A prompt that fills the context has no continuation, and gets `NO_ROOM`. All other continuations have the same
        length in tokens: 16, or less if the longest prompt leaves less room.

        Args:
          prompts: The prompts.

        Raises:
          ValueError: If a prompt has no tokens or does not fit the context.
        """
        tokenizer, context = self.model.tokenizer, self.model.config.context_length
        rows = prompt_ids(self.model, prompts)
        fitting = [index for index, row in enumerate(rows) if len(row) < context]
        results = ([NO_ROOM] * len(rows), [NO_ROOM] * len(rows))
        if not fitting:
            return results
        batch = pad([rows[index] for index in fitting])
        tokens = min(CONTINUATION, context - batch.ids.shape[1])
        for result, (model, deltas) in zip(results, self.sides, strict=True):
            out = generate(
                model.params,
                model.config,
                batch,
                max_new_tokens=tokens,
                deltas=deltas,
                stop_token=tokenizer.eos_token_id,
            )
            texts = out.texts(tokenizer, with_prompt=False)
            for index, text in zip(fitting, texts, strict=True):
                result[index] = text.removesuffix(tokenizer.eos_token or "")
        return results


def known_prompts(model_name: str, request: EditRequest) -> Prompts:
    """Returns the paraphrases and the neighbors of a factworld request, or of the example for pretrained models.

    In factworld, paraphrases are the other templates of the relation, and neighbors are the prompts about other
    subjects that have the same object before the edit. Other requests have none.

    Args:
      model_name: Name of the model.
      request: The edit request.

    Example:
      >>> prompts = known_prompts("factworld-gpt2", request)
      >>> len(prompts.paraphrases), prompts.paraphrases[0]
      (5, ...)
    """
    if model_name not in SHIPPED:
        if request.text != samples.EXAMPLE.text:
            return Prompts()
        return Prompts(samples.EXAMPLE_PARAPHRASES, samples.EXAMPLE_NEIGHBORS)
    world = make_world()
    try:
        facts = world.facts_about(request.subject)
    except KeyError:  # an unknown subject
        return Prompts()
    for fact in facts:
        relation = world.relation(fact.relation_id)
        if request.prompt in relation.templates:
            others = [t for t in relation.templates if t != request.prompt]
            neighbors = [
                other.subject
                for other in world.facts_of(relation.id)
                if other.target == fact.target and other.subject != fact.subject
            ]
            return Prompts(
                [fill(template, request.subject) for template in others],
                [fill(request.prompt, subject) for subject in neighbors],
            )
    return Prompts()


def print_report(
    comparison: Comparison,
    request: EditRequest,
    prompts: Prompts,
    method: str | None = None,
    layers: Sequence[LayerEdit] = (),
) -> None:
    """Prints probabilities, continuations and a summary in two sentences.

    Args:
      comparison: The model before and after the edit.
      request: The fact to examine.
      prompts: Further prompts to examine, in addition to those that factworld knows.
      method: Name of the method that made the edit; None leaves out how the edit was made.
      layers: The layers of an `EditResult`, of which this is the first edit.
    """
    known = known_prompts(comparison.model.name, request)
    groups = {
        "the prompt": [request.text],
        "paraphrases (should change too)": [*known.paraphrases, *prompts.paraphrases],
        "neighbors (should not change)": [*known.neighbors, *prompts.neighbors],
    }
    continued = [text for group in groups.values() for text in group[:CONTINUED]]
    before, after = comparison.continuations(continued)
    true = request.target_true or present_answer(before[0])

    print(f"Model   {comparison.model!r}")
    print(f"Edit    {request.text!r}: {true!r} becomes {request.target_new!r}")
    for line in _how(comparison, layers) if method else ():
        print(f"{method:7s} {line}")

    outcomes = _print_probabilities(comparison, groups, request.target_new, true)
    print("\ngreedy continuations")
    for text, old, new in zip(continued, before, after, strict=True):
        print(f"  {shorten(text, 110)}")
        print(f"    before: {shorten(old.strip(), 100)}\n    after:  {shorten(new.strip(), 100)}")
    _, paraphrases, neighbors = outcomes.values()
    _print_summary(request, true, before[0], after[0], paraphrases, neighbors)


def _how(comparison: Comparison, layers: Sequence[LayerEdit]) -> list[str]:
    """Returns what an edit did to each layer, or to each weight if no more is known."""
    if not layers:
        return [
            f"{change.weight} of layer {change.layer}: ‖ΔW‖/‖W‖ {change.norm_ratio:.3f}, "
            + ("dense" if change.rank is None else f"rank {change.rank}")
            for change in weight_changes(comparison.model.params, comparison.delta)
        ]
    lines = []
    for edit in layers:
        losses = np.asarray(edit.optimization.loss[0])
        lines.append(
            f"layer {edit.layer}, {int(edit.optimization.steps[0])} evaluations, "
            f"loss {losses[0]:.2f} -> {np.nanmin(losses):.2f}, "
            f"‖ΔW‖/‖W‖ {float(edit.norm_ratio[0]):.3f}, "
            f"division factor {float(edit.division_factor[0]):.3g}"
        )
    return lines


def _print_probabilities(
    comparison: Comparison, groups: dict[str, list[str]], new: str, true: str
) -> dict[str, Outcome]:
    """Prints the table of probabilities, and returns the outcome of each group."""
    texts = [text for group in groups.values() for text in group]
    new_values = comparison.probabilities(texts, [new] * len(texts))
    true_values = comparison.probabilities(texts, [true] * len(texts))
    table = np.stack([*new_values, *true_values], axis=-1)  # [prompts, 4]
    print(f"\n{'probability of':60s}   {shorten(new, 16):>16s}   {shorten(true, 16):>16s}")
    print(f"{'':60s}   {'before':>7s}  {'after':>7s}   {'before':>7s}  {'after':>7s}")
    outcomes, start = {}, 0
    for name, group in groups.items():
        rows = table[start : start + len(group)]
        start += len(group)
        outcomes[name] = Outcome.of(rows)
        if group:
            print(name)
        for text, (a, b, c, d) in zip(group[:SHOWN], rows, strict=False):
            print(f"  {shorten(text, 58):58s}   {a:7.3f}  {b:7.3f}   {c:7.3f}  {d:7.3f}")
        if len(group) > SHOWN:
            print(f"  ... and {len(group) - SHOWN} more")
    return outcomes


def _print_summary(
    request: EditRequest,
    true: str,
    before: str,
    after: str,
    paraphrases: Outcome,
    neighbors: Outcome,
) -> None:
    """Prints two lines: what the edit changed, and what it left unchanged."""
    new = target_text(request.target_new)
    if before.startswith(new):
        said = f"Not changed: about {request.subject}, the model said {request.target_new!r} before"
    elif after.startswith(new):
        said = f"What changed: about {request.subject}, the model now says {request.target_new!r} instead of {true!r}"
    else:
        said = (
            f"Not changed: about {request.subject}, the model says {present_answer(after)!r}, "
            f"not {request.target_new!r}"
        )
    if paraphrases.count:
        preferred = "it" if after.startswith(new) else repr(request.target_new)
        said += (
            f", and prefers {preferred} on {paraphrases.new_after} of {paraphrases.count} paraphrases "
            f"(before: {paraphrases.new_before})"
        )
    print(f"\n{said}.")
    count = neighbors.count
    if count:
        print(
            f"What did not: {neighbors.kept_after} of {count} neighbors still prefer {true!r} "
            f"(before: {neighbors.kept_before}); its mean probability "
            f"{_change(neighbors.true_before, neighbors.true_after)}."
        )
    else:
        print("What did not: unknown, because there are no neighbors; name some with --neighbor.")


def _change(before: float, after: float) -> str:
    """Returns how a probability changed, in words.

    Example:
      >>> _change(0.98, 0.65), _change(0.981, 0.979)
      ('fell from 0.98 to 0.65', 'stayed at 0.98')
    """
    old, new = f"{before:.2f}", f"{after:.2f}"
    if old == new:
        return f"stayed at {new}"
    return f"{'fell' if after < before else 'rose'} from {old} to {new}"


def present_answer(continuation: str) -> str:
    """Returns the first word of a continuation without the punctuation around it, or "(nothing)".

    Example:
      >>> present_answer(' "Paris", in')
      'Paris'
    """
    words = continuation.split()
    return (words[0].strip(".,;:!?\"'") or words[0]) if words else "(nothing)"


def talk(comparison: Comparison, read: Callable[[str], str] = input) -> None:
    """Shows each typed prompt before and after the edit, until an empty line, the end of the input, or Ctrl-C.

    Args:
      comparison: The model before and after the edit.
      read: Shows its argument and returns the next line.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, with it input() can edit and recall lines
    print("\nType a prompt; an empty line ends.")
    try:
        while line := read("> ").rstrip():
            try:
                print_lens(comparison, line)
            except ValueError as error:  # a line that does not fit the context
                print(f"  {error}")
    except (EOFError, KeyboardInterrupt):
        print()


def print_lens(comparison: Comparison, prompt: str) -> None:
    """Prints the continuations of a prompt before and after the edit, and the most likely next token of each layer.

    Args:
      comparison: The model before and after the edit.
      prompt: The prompt.

    Raises:
      ValueError: If the prompt has no tokens or does not fit the context.
    """
    model = comparison.model
    (before,), (after,) = comparison.continuations([prompt])
    print(f"  before:{before}\n  after: {after}")
    batch = pad(prompt_ids(model, [prompt]), context_length=model.config.context_length, multiple=8)
    columns = []
    for side, deltas in comparison.sides:
        lens = logit_lens(side.params, side.config, batch, deltas=deltas)[:, 0]
        columns.append(top_tokens(lens, side.tokenizer, k=1))
    print("  logit lens   " + "before".ljust(24) + "after")
    for layer, row in enumerate(zip(*columns, strict=True)):
        cells = [f"{text!r} {probability:.2f}".ljust(24) for ((text, probability),) in row]
        print(f"    layer {layer:2d}   " + "".join(cells).rstrip())


def shorten(text: str, width: int) -> str:
    """Returns the text on one line of at most `width` characters.

    Example:
      >>> shorten("a long line", 7)
      'a long…'
    """
    text = text.replace("\n", " ")
    return text if len(text) <= width else text[: width - 1] + "…"
