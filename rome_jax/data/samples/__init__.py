"""A few real records that come with the package, so that pretrained models can be tried without a download.

They are 20 records of CounterFact (Meng et al., 2022), with one paraphrase and one neighborhood prompt each; the file
LICENSE has their license. Results on so few records have wide intervals. Causal traces need facts that a model knows,
and small models know few facts of CounterFact, so there are also 20 well-known facts.
"""

from __future__ import annotations

import importlib.resources
from pathlib import Path

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

# Template, subject, and attribute of facts to trace. SmolLM2-135M knows all of them.
KNOWN_FACTS = (
    ("{} is located in the city of", "The Eiffel Tower", "Paris"),
    ("{} is located in the city of", "The Louvre", "Paris"),
    ("{} is located in the city of", "The Colosseum", "Rome"),
    ("{} is located in the city of", "The Brandenburg Gate", "Berlin"),
    ("{} is located in the city of", "The Acropolis", "Athens"),
    ("{} is located in the city of", "The Kremlin", "Moscow"),
    ("{} is located in the city of", "The Sagrada Familia", "Barcelona"),
    ("{} is located in the country of", "The Taj Mahal", "India"),
    ("{} is located in the country of", "Machu Picchu", "Peru"),
    ("{} is located in the country of", "Mount Fuji", "Japan"),
    ("{} is located on the continent of", "The Sahara Desert", "Africa"),
    ("{} was born in the country of", "Wolfgang Amadeus Mozart", "Austria"),
    ("{} was born in the country of", "Napoleon Bonaparte", "France"),
    ("The mother tongue of {} is", "Victor Hugo", "French"),
    ("The mother tongue of {} is", "Johann Wolfgang von Goethe", "German"),
    ("The official language of {} is", "Mexico", "Spanish"),
    ("The official language of {} is", "Austria", "German"),
    ("The capital of {} is", "Japan", "Tokyo"),
    ("{} was developed by the company", "The iPhone", "Apple"),
    ("{} was written by William", "Romeo and Juliet", "Shakespeare"),
)

SAMPLE = "sample"  # given instead of a path to read the records
COUNTERFACT = Path(str(importlib.resources.files("rome_jax.data.samples") / "counterfact_20.json"))
