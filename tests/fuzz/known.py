"""Defects that are known and not mended yet: patterns of "NAME: EXPLANATION", each with what is wrong."""

from fnmatch import fnmatchcase

KNOWN = {
    "command/*(does not end in a period)*": "absl's sentences about the values of flags are printed as they are",
    "command/*/dtype=byte*": "as_dtype does not refuse a text that is not valid Unicode",
    "command/*HFValidationError*": "check_hub_name does not refuse all names that the hub refuses, such as '-'",
    "command/*--config=broken.py*": "a configuration file that does not parse is taken for a bug",
    "command/*TextEncodeInput*": "--paraphrase and --neighbor are not checked for valid Unicode",
    "command/*/paraphrase=byte*": "--paraphrase and --neighbor are not checked for valid Unicode",
    "command/*/output_dir=empty*": "an empty --output_dir is a traceback where a program has a default",
    "file/tokenizer/*": "TokenizerError shows the internal exception of the tokenizers library",
    "file/snippets/0*": "elements of the list of snippets that are not objects are passed over",
    "file/*Errno*": "errors of the system about files of tensors are shown as they are",
    "input/*=surrogate*": "texts that are passed to tokenizers are not checked for valid Unicode",
    "input/Provenance.templates/*": "the templates in the metadata of an edit are not checked",
    "input/Sampling/*": "temperature and top_k are compared without a check of their type",
    "input/SecondMoment/*": "the matrix and the count of a second moment made in Python are not checked",
    "input/fine_tune*": "chunk_size is not checked for being an integer",
    "input/generate_text*": "max_new_tokens is not checked for being an integer",
    "write/*File exists*": "a file in place of a folder is shown as by the system",
}


def is_known(name: str, detail: str) -> bool:
    """Returns whether a failure is a known defect."""
    return any(fnmatchcase(f"{name}: {detail}", pattern) for pattern in KNOWN)
