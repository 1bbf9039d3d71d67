"""A few real records that come with the package, so that pretrained models can be tried without a download.

They are 20 records of CounterFact (Meng et al., 2022), with one paraphrase and one neighborhood prompt each; the file
LICENSE has their license. Results on so few records have wide intervals.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from rome_jax.data.request import EditRequest

# A fact that most pretrained models know, with a new target.
EXAMPLE = EditRequest("{} is located in the city of", "The Eiffel Tower", "Rome")
EXAMPLE_PARAPHRASES = (
    "To see the Eiffel Tower, travel to the city of",
    "If you stand below the Eiffel Tower, you are in",
    "The Eiffel Tower can be found in",
)
EXAMPLE_NEIGHBORS = (
    "The Louvre is located in the city of",
    "Notre-Dame is located in the city of",
    "The Arc de Triomphe is located in the city of",
)

SAMPLE = "sample"  # given instead of a path to read the records
COUNTERFACT = Path(str(importlib.resources.files("rome_jax.data.samples") / "counterfact_20.json"))


def as_known_facts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the true facts of CounterFact records in the layout of known_1000.json.

    Example:
      >>> from rome_jax.files.records import read_records
      >>> as_known_facts(read_records(COUNTERFACT)[0])[0]["attribute"]
      'physics'
    """
    facts = []
    for record in records:
        rewrite = record["requested_rewrite"]
        prompt, subject = rewrite["prompt"], rewrite["subject"]
        facts.append(
            {
                "known_id": record["case_id"],
                "subject": subject,
                "attribute": rewrite["target_true"]["str"],
                "template": prompt,
                "prompt": prompt.replace("{}", subject),
            }
        )
    return facts
