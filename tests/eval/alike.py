"""Requests whose prompts and targets have the same numbers of tokens, so that few programs are compiled."""

import dataclasses

from rome_jax.evaluation import load_dataset


def load_alike(model):
    """The data set of the model with its requests of seven tokens and targets of one."""

    def length(text):
        return len(model.tokenizer.encode(text))

    found = load_dataset("cf", model_name=model.name)
    records = tuple(
        record
        for record in found.records
        if (record.relation_id, length(record.request.text)) == ("instrument", 7)
        and length(f" {record.request.target_new}") == 1
    )
    return dataclasses.replace(found, records=records)
