"""What an edit changed and what it left alone, in a terminal."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from eval.scoring import target_nlls
from rome_jax.edit.rome import ROMEResult
from rome_jax.factworld.facts import make_world
from rome_jax.models.generate import generate_text
from rome_jax.models.interventions import Delta
from rome_jax.models.logit_lens import logit_lens
from rome_jax.models.registry import SHIPPED, LanguageModel
from rome_jax.request import EditRequest, fill, target_text
from rome_jax.tokens import encode

CONTINUATION = 16  # tokens
SHOWN = 5  # prompts of a kind in the table; the summary counts all


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Where an edit is looked at besides its own prompt: where it must show, and where it must not."""

    paraphrases: Sequence[str] = ()
    neighbors: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One model before and after one edit; the edited one is never built."""

    model: LanguageModel
    delta: Delta

    def probabilities(self, prompts: Sequence[str], target: str) -> tuple[np.ndarray, np.ndarray]:
        """Probability of the whole target after each prompt, before and after: [B] each."""
        count = len(
            self.model.tokenizer(target_text(target), add_special_tokens=False)["input_ids"]
        )
        nlls = functools.partial(target_nlls, self.model, prompts, [target] * len(prompts))
        return np.exp(-count * nlls()), np.exp(-count * nlls(deltas=self.delta))

    def continuations(
        self, prompts: Sequence[str], tokens: int = CONTINUATION
    ) -> tuple[list[str], list[str]]:
        """What greedy decoding adds to each prompt, before and after."""
        return tuple(
            [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
            for texts in (
                generate_text(self.model, prompts, max_new_tokens=tokens, deltas=deltas)
                for deltas in (None, self.delta)
            )
        )


def factworld_prompts(model_name: str, request: EditRequest) -> Prompts:
    """The other templates of a factworld request's relation, and other subjects with the same present object."""
    if model_name not in SHIPPED:
        return Prompts()
    world = make_world()
    for fact in world.facts_about(request.subject):
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
    comparison: Comparison, request: EditRequest, result: ROMEResult, prompts: Prompts
) -> None:
    """Prints probabilities, continuations and a plain summary."""
    model = comparison.model
    before, after = comparison.continuations([request.text])
    true = request.target_true or present_answer(model, request.text, before[0])
    print(f"Model   {model!r}")
    print(f"Edit    {request.text!r}: {true!r} becomes {request.target_new!r}")
    for edit in result.layers:
        print(
            f"ROME    layer {edit.layer}, {int(edit.optimization.steps[0])} evaluations, loss "
            f"{float(edit.optimization.loss[0, 0]):.2f} -> {float(np.nanmin(edit.optimization.loss[0])):.2f}, "
            f"‖ΔW‖/‖W‖ {float(edit.norm_ratio[0]):.3f}, division factor {float(edit.division_factor[0]):.3g}"
        )
    groups = {
        "the prompt": [request.text],
        "paraphrases (should change too)": list(prompts.paraphrases),
        "neighbors (should not change)": list(prompts.neighbors),
    }
    print(f"\n{'probability of':>60s}   {request.target_new[:14]:>16s}   {true[:14]:>16s}")
    print(f"{'':60s}   {'before':>7s}  {'after':>7s}   {'before':>7s}  {'after':>7s}")
    says_new = {}
    for name, texts in groups.items():
        if not texts:
            continue
        new, old = (
            comparison.probabilities(texts, target) for target in (request.target_new, true)
        )
        says_new[name] = (int((new[0] > old[0]).sum()), int((new[1] > old[1]).sum()), len(texts))
        print(name)
        for row, text in enumerate(texts[:SHOWN]):
            values = (
                f"{new[0][row]:7.3f}  {new[1][row]:7.3f}   {old[0][row]:7.3f}  {old[1][row]:7.3f}"
            )
            print(f"  {_shorten(text, 58):58s}   {values}")
        if len(texts) > SHOWN:
            print(f"  ... and {len(texts) - SHOWN} more")

    print("\ngreedy continuations")
    texts = [text for group in groups.values() for text in group[:2]]
    for text, old, new in zip(texts, *comparison.continuations(texts), strict=True):
        print(f"  {text}\n    before:{_shorten(old, 88)}\n    after: {_shorten(new, 88)}")
    _print_summary(request, true, after[0], list(groups), says_new)


def _print_summary(request, true, continuation, names, says_new) -> None:
    said = continuation.startswith(target_text(request.target_new))
    print(
        f"\nWhat changed: about {request.subject}, the model {'now says' if said else 'STILL DOES NOT SAY'}",
        end=" ",
    )
    print(f"{request.target_new!r} instead of {true!r}", end="")
    if names[1] in says_new:
        before, after, count = says_new[names[1]]
        print(f", and prefers it on {after} of {count} paraphrases (before: {before})", end="")
    print(".")
    if names[2] in says_new:
        before, after, count = says_new[names[2]]
        print(
            f"What did not: {count - after} of {count} neighbors still prefer {true!r} (before: {count - before})."
        )


def print_lens(comparison: Comparison, prompt: str) -> None:
    """Continuations of one prompt before and after, and each layer's most likely next token."""
    model = comparison.model
    (before,), (after,) = comparison.continuations([prompt])
    print(f"  before:{before}\n  after: {after}")
    batch = encode(
        model.tokenizer, [prompt], context_length=model.config.context_length, multiple=8
    )
    print("  logit lens   " + "before".ljust(24) + "after")
    lenses = [
        np.asarray(logit_lens(model.params, model.config, batch, deltas=deltas))[:, 0]
        for deltas in (None, comparison.delta)
    ]
    for layer, rows in enumerate(zip(*lenses, strict=True)):
        cells = [_likeliest(model, row).ljust(24) for row in rows]
        print(f"    layer {layer:2d}   " + "".join(cells).rstrip())


def _likeliest(model: LanguageModel, logits: np.ndarray) -> str:
    probabilities = np.exp(logits - logits.max())
    token = int(logits.argmax())
    return f"{model.tokenizer.decode([token])!r} {1 / probabilities.sum():.2f}"


def present_answer(model: LanguageModel, prompt: str, continuation: str) -> str:
    """The first word of a greedy continuation, or its first token where that is no word."""
    words = continuation.split()
    word = words[0].strip(".,;:!?\"'") if words else ""
    return word or continuation[:1] or "(nothing)"


def _shorten(text: str, width: int) -> str:
    text = text.replace("\n", " ")
    return text if len(text) <= width else text[: width - 1] + "…"
