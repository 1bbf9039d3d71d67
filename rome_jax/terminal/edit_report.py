"""What an edit changed and left alone, for a terminal."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from rome_jax.data.request import EditRequest, fill, target_text
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
SHOWN = 5  # prompts of a kind in the table; the summary counts all
CONTINUED = 2  # prompts of a kind whose continuations are shown
NO_ROOM = "(no room)"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Where an edit is looked at besides its own prompt: where it must show, and where it must not."""

    paraphrases: Sequence[str] = ()
    neighbors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model before and after one edit."""

    model: LanguageModel
    delta: Delta

    @functools.cached_property
    def sides(self) -> tuple[tuple[LanguageModel, Delta | None], ...]:
        """What forward passes take before and after: a factored delta as it is, a dense one merged."""
        if self.delta.factored:
            return (self.model, None), (self.model, self.delta)
        params = apply_delta(self.model.params, self.delta)
        return (self.model, None), (self.model.replace(params=params), None)

    def probabilities(
        self, prompts: Sequence[str], targets: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each whole target after its prompt, before and after: [B] each."""
        texts = [target_text(target) for target in targets]
        ids = self.model.tokenizer(texts, add_special_tokens=False)["input_ids"]
        counts = np.array([len(row) for row in ids])
        before, after = (
            np.exp(-counts * target_nlls(model, prompts, targets, deltas=deltas))
            for model, deltas in self.sides
        )
        return before, after

    def continuations(self, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
        """What greedy decoding adds to each prompt, before and after, up to the end of the text.

        Prompts as long as the context give `NO_ROOM`; the longest of the others says how much is added to all.

        Raises:
          ValueError: a prompt without tokens, or one that does not fit the context.
        """
        tokenizer, context = self.model.tokenizer, self.model.config.context_length
        rows = prompt_ids(self.model, prompts)
        fitting = [index for index, row in enumerate(rows) if len(row) < context]
        results = [NO_ROOM] * len(rows), [NO_ROOM] * len(rows)
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


def factworld_prompts(model_name: str, request: EditRequest) -> Prompts:
    """The other templates of a factworld request's relation, and other subjects with the same present object.

    None of either for other models, and for a subject or a prompt that factworld does not know.
    """
    if model_name not in SHIPPED:
        return Prompts()
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
    """Prints probabilities, continuations and a plain summary.

    Args:
      comparison: of the models before and after.
      request: the fact to look at.
      prompts: where to look besides, and at what factworld knows.
      method: that made the edit; None prints nothing of how it came about.
      layers: of a `ROMEResult`, whose first edit it is.
    """
    known = factworld_prompts(comparison.model.name, request)
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

    prefers = _print_probabilities(comparison, groups, request.target_new, true)
    print("\ngreedy continuations")
    for text, old, new in zip(continued, before, after, strict=True):
        print(f"  {shorten(text, 110)}")
        print(f"    before: {shorten(old.strip(), 100)}\n    after:  {shorten(new.strip(), 100)}")
    _print_summary(request, true, before[0], after[0], *list(prefers.values())[1:])


def _how(comparison: Comparison, layers: Sequence[LayerEdit]) -> list[str]:
    """What an edit did to each layer, or to each weight if nothing more is known."""
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
) -> dict[str, tuple[int, int, int]]:
    """Prints the table; by group, on how many prompts the new target is likelier, before and after, of how many."""
    texts = [text for group in groups.values() for text in group]
    new_values = comparison.probabilities(texts, [new] * len(texts))
    true_values = comparison.probabilities(texts, [true] * len(texts))
    table = np.stack([*new_values, *true_values], axis=-1)  # [prompts, 4]
    print(f"\n{'probability of':60s}   {shorten(new, 16):>16s}   {shorten(true, 16):>16s}")
    print(f"{'':60s}   {'before':>7s}  {'after':>7s}   {'before':>7s}  {'after':>7s}")
    prefers, start = {}, 0
    for name, group in groups.items():
        rows = table[start : start + len(group)]
        start += len(group)
        wins = (rows[:, :2] > rows[:, 2:]).sum(0)
        prefers[name] = (int(wins[0]), int(wins[1]), len(group))
        if group:
            print(name)
        for text, (a, b, c, d) in zip(group[:SHOWN], rows, strict=False):
            print(f"  {shorten(text, 58):58s}   {a:7.3f}  {b:7.3f}   {c:7.3f}  {d:7.3f}")
        if len(group) > SHOWN:
            print(f"  ... and {len(group) - SHOWN} more")
    return prefers


def _print_summary(
    request: EditRequest,
    true: str,
    before: str,
    after: str,
    paraphrases: tuple[int, int, int],
    neighbors: tuple[int, int, int],
) -> None:
    """Two lines: what the edit changed, and what it left alone."""
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
    old, now, count = paraphrases
    if count:
        preferred = "it" if after.startswith(new) else repr(request.target_new)
        said += f", and prefers {preferred} on {now} of {count} paraphrases (before: {old})"
    print(f"\n{said}.")
    old, now, count = neighbors
    if count:
        print(
            f"What did not: {count - now} of {count} neighbors still prefer {true!r} (before: {count - old})."
        )
    else:
        print("What did not: not looked at; name neighbors with --neighbor.")


def present_answer(continuation: str) -> str:
    """The first word of a greedy continuation without the punctuation around it, or "(nothing)"."""
    words = continuation.split()
    return (words[0].strip(".,;:!?\"'") or words[0]) if words else "(nothing)"


def talk(comparison: Comparison, read: Callable[[str], str] = input) -> None:
    """Shows each typed prompt before and after, until an empty line, the end of the input or Ctrl-C."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, input() edits lines and recalls them once it is there
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
    """Continuations of one prompt before and after, and each layer's most likely next token."""
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
    """`text` on one line of at most `width` characters."""
    text = text.replace("\n", " ")
    return text if len(text) <= width else text[: width - 1] + "…"
