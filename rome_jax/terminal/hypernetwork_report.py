"""What comes out of `eval.train_hypernetwork`: the curves of the training, and how well the network validates."""

from __future__ import annotations

import json
from pathlib import Path

from rome_jax.edit.hypernetworks.training import REPORT


def report(directory: str | Path) -> None:
    """Draws training.png; prints how the kept network validates.

    Args:
      directory: of a finished training.
    """
    from rome_jax.plots.hypernetworks import plot

    directory = Path(directory)
    found = json.loads((directory / REPORT).read_text())
    plot(found, directory / "training.png")
    best = found["best"]
    print(
        f"Best at step {best['step']} of {found['history'][-1]['step']}: {best['success']:.1%} of validation "
        f"paraphrases say the new target, {best['kept']:.1%} of other facts are kept; edit loss {best['edit']:.3f}, "
        f"KL {best['kl']:.4f} nats"
    )
