"""The tables of bad command lines: what flags mean, their bad values, and command lines that contradict themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from absl import flags

MODEL = "factworld-gpt2"
_REQUEST = ["--prompt={} plays the sport of", "--subject=Gothulf Punby", "--target_new=tennis"]
# Arguments with which a program does little, or without which it refuses everything.
BASE: Mapping[str, Sequence[str]] = {
    "edits": ["--apply=edit.safetensors"],
    "summarize": ["--dir_name=ROME"],
    "compare_sequences": ["--sequences=sequence"],
    "train_factworld": ["--family=gpt2", "--output_dir=trained", "--steps=1"],
    "sweep": ["--sweep=layers=0", "--num_cases=1"],
    "evaluate": ["--num_cases=1", "--nogeneration"],
    "compare": ["--num_cases=1", "--nogeneration", "--algs=FT-L"],
    "layer_stats": ["--layers=0", "--dataset=texts.txt"],
    "causal_trace": ["--num_cases=1"],
    **{name: ["--num_edits=1"] for name in ("mass_edits", "sequence", "sequential_edits")},
    "statistics_table": ["--num_tokens=0", "--num_cases=1"],
    "train_hypernetwork": ["--max_steps=1"],
}
# Arguments without which a flag has no effect, by program and flag.
WITH: Mapping[tuple[str, str], Sequence[str]] = {
    **{
        ("edit", name): _REQUEST
        for name in "prompt subject target_new target_true paraphrase neighbor".split()
    },
    **{
        ("edits", name): _REQUEST
        for name in "prompt subject target_new target_true paraphrase neighbor".split()
    },
    **{("causal_trace", name): _REQUEST[:2] for name in "prompt subject target contrast".split()},
    **{
        (program, "hypernetwork"): ["--alg_name=MEND"]
        for program in "edit evaluate mass_edits sequence sequential_edits sweep".split()
    },
    ("compare", "hypernetworks"): ["--algs=MEND"],
    ("causal_trace", "contrast"): [*_REQUEST[:2], "--target=tennis"],
    **{
        (program, name): ["--generation"]
        for program in ("evaluate", "compare", "sweep")
        for name in ("snippets_path", "tfidf_dir")
    },
    ("compare", "second_moments"): ["--algs=ROME"],
    ("causal_trace", "noise_corpus"): ["--noise_level=t3"],
}
# What the text of a flag means. A flag that is not listed is a text without a meaning of its own.
ROLES: Mapping[str, str] = {
    **dict.fromkeys(
        "data_path snippets_path tfidf_dir fact_file hparams_fname second_moments".split(), "input"
    ),
    **dict.fromkeys(
        "hypernetwork inspect apply revert dataset templates config noise_corpus".split(), "input"
    ),
    **dict.fromkeys("save output plot merge_to".split(), "output file"),
    **dict.fromkeys("export_hf export_orbax output_dir results_dir".split(), "output folder"),
    **dict.fromkeys(
        "prompt subject target_new target_true paraphrase neighbor target contrast".split(), "text"
    ),
    **dict.fromkeys("layers num_articles noise_level".split(), "numbers"),
    **dict.fromkeys("dtype model_name revision sweep continue_from_run".split(), "name"),
    "sweep_name": "new name",
    "mesh": "mesh",
}
LONG = "a" * 300  # longer than the name of a file can be
NAN = {"nan": "nan", "inf": "inf", "1e400": "1e400"}
HUGE = {"huge": "9223372036854775808", "digits": "9" * 400}
OF_ROLE: Mapping[str, Mapping[str, str]] = {
    "input": {
        "nowhere": "nowhere/nothing",
        "up": "../nothing",
        "folder": "folder",
        "empty-file": "empty.json",
    }
    | {
        "junk": "junk.bin",
        "long": LONG,
        "bytes": "\udce9.json",
        "null": "/dev/null",
        "json": "number.json",
        "link": "broken",
    },
    "output file": {
        "below-file": "foreign.txt/x.safetensors",
        "folder": "folder",
        "long": LONG,
        "long-path": "a/" * 3000,
        "empty": "",
        "spaces": "  ",
        "dot": ".",
        "dots": "folder/..",
        "slash": "new/",
        "loop": "loop",
        "below-loop": "loop/x.safetensors",
    },
    "output folder": {
        "file": "foreign.txt",
        "below-file": "foreign.txt/x",
        "long": LONG,
        "long-path": "a/" * 3000,
        "empty": "",
        "spaces": "  ",
        "loop": "loop",
        "broken": "broken",
        "below-broken": "broken/x",
    },
    "text": {"bytes": "caf\udce9"},
    "numbers": {"word": "abc", "minus": "-1", "range": "3-1", "half": "1.5.2", **NAN},
    "name": {
        "nowhere": "nowhere/nothing",
        "up": "../nothing",
        "bytes": "\udce9",
        "long": LONG,
        "space": "a b",
        **NAN,
    },
    "new name": {
        "up": "../../escape",
        "absolute": "/nowhere/escape",
        "below": "a/../../b",
        "long": LONG,
    },
    "mesh": {
        "word": "abc",
        "axis": "heads:2",
        "zero": "model:0",
        "minus": "data:-2",
        "half": "model:1.5",
        "twice": "model:1,model:1",
        "both": "data:-1,model:-1",
        "huge": f"model:{10**30}",
        "nan": "data:nan",
    },
    "other": {},
}
# Values of texts that may be taken or refused.
EMPTY: Mapping[str, str] = {
    "empty": "",
    "byte": "\udce9",
    "proc": "/proc/nowhere/x",
    "nobody": "~no.such.user/x",
}
ODD: Mapping[str, str] = {
    "empty": "",
    "spaces": "  ",
    "byte": "\udce9",
    "dots": "..",
    "tilde": "~",
    "number": "17",
    "dash": "-",
    "nobody": "~no.such.user/x",
}
# The values that are refused and those that may be taken, by what a flag is parsed with.
OF_PARSER: Mapping[type, tuple[Mapping[str, str], Mapping[str, str]]] = {
    flags.IntegerParser: (
        {"word": "abc", "half": "1.5", "minus": "-1", "nan": "nan", "empty": ""},
        HUGE | {"zero": "0"},
    ),
    flags.FloatParser: (
        {"word": "abc", "minus": "-1", "empty": "", **NAN},
        HUGE | {"zero": "0", "tiny": "1e-300"},
    ),
    flags.BooleanParser: ({"word": "maybe", "two": "2"}, {}),
    flags.EnumParser: ({"word": "nonsense", "empty": "", "bytes": "\udce9"}, {}),
    flags.EnumClassParser: ({"word": "nonsense", "empty": "", "bytes": "\udce9"}, {}),
    flags.ListParser: (
        {"word": "nonsense", "comma": ",", "bytes": "\udce9", "minus": "-1", "up": "../.."}
        | {"half": "1.5", "long": LONG, **NAN},
        {"empty": "", "quote": '"a', **HUGE},
    ),
}
CONFIG_VALUES: Mapping[type, Mapping[str, str]] = {
    float: {"word": "abc", "empty": "", "tuple": "(1,)", **NAN},
    int: {"word": "abc", "half": "1.5", "empty": "", "huge": "9223372036854775808", **NAN},
    bool: {"word": "maybe", "two": "2", **NAN},
    str: {"word": "nonsense", "bytes": "\udce9", "empty": "", **NAN},
    tuple: {
        "word": "abc",
        "beyond": "(99,)",
        "none": "()",
        "texts": "('a',)",
        "minus": "(-1,)",
        "nan": "nan",
        "half": "(0.5,)",
    }
    | {"huge": "(9223372036854775808,)", "open": "(1,", "code": "__import__('os')"},
}
# Command lines that contradict themselves, by program.
CONTRADICTIONS: Mapping[str, Sequence[Sequence[str]]] = {
    "edit": [
        ["--alg_name=FT", "--hypernetwork=edit.safetensors"],
        ["--alg_name=FT", "--second_moments=edit.safetensors"],
        ["--prompt={} is"],
        ["--subject=Rome"],
        ["--prompt=no slot", "--subject=Rome", "--target_new=x"],
        ["--prompt={} {}", "--subject=Rome", "--target_new=x"],
        ["--inspect=edit.safetensors", "--apply=edit.safetensors"],
        ["--inspect=edit.safetensors", "--save=x.safetensors"],
        ["--save=x.safetensors", "--apply=edit.safetensors"],
        ["--save=a.bin"],
        ["--export_hf=foreign"],
        ["--export_orbax=foreign"],
        ["--config=configs/nothing.py"],
        ["--config=broken.py"],
        ["--config=configs/rome.py:nonsense"],
        ["--hparams_fname=unknown.json"],
        *(
            [f"--{flag}={path}"]
            for flag in ("hparams_fname", "templates", "second_moments", "config", "inspect")
            for path in ("cf.json", "texts.txt", "folder", "foreign", "blank.txt")
        ),
        *(
            [f"--{flag}=edit.safetensors"]
            for flag in ("hparams_fname", "templates", "second_moments", "config", "model_name")
        ),
        *([f"--model_name={path}"] for path in ("folder", "foreign", "cf.json", "foreign.txt")),
        *(
            [f"--config.{field}"]
            for field in ("layers=", "layers=(0,0)", "=1", "layers.0=1", "v_lr=1e-400", "v_lr=0")
        ),
        ["--prompt={} is", "--subject=", "--target_new=x"],
        ["--prompt={} is", "--subject= Rome", "--target_new=x"],
        ["--prompt={} is ", "--subject=Rome", "--target_new=x"],
        ["--prompt={} is", "--subject=Rome", "--target_new=  "],
        ["--prompt={} is in", "--subject=Rome", "--target_new=" + "x " * 3000 + "x"],
        ["--save=edit.safetensors/x.safetensors"],
        ["--save=.safetensors"],
        ["--save=new.safetensors", "--export_hf=new.safetensors"],
        ["--export_hf=new", "--export_orbax=new"],
        ["--export_hf=new", "--export_orbax=new/inner"],
        ["--export_hf=new", "--save=new/x.safetensors"],
        ["--export_hf=results"],
        ["--second_moments=published"],
        ["--second_moments=cached"],
        ["--revision=main"],
        ["--dtype=float64"],
    ],
    "edits": [
        [],
        ["--inspect=edit.safetensors", "--revert=edit.safetensors"],
        ["--apply=edit.safetensors", "--merge_to=x.bin"],
        ["--apply=edit.safetensors", "--export_hf=foreign"],
        ["--apply=edit.safetensors", "--model_name=factworld-gptj"],
        ["--revert=edit.safetensors", "--merge_to=x.safetensors"],
        ["--apply=cf.json"],
        ["--apply=folder"],
        ["--apply=junk.bin"],
        ["--inspect=folder"],
        ["--inspect=cf.json"],
        ["--apply=edit.safetensors", "--prompt={} is"],
        ["--apply=edit.safetensors", "--export_hf=results"],
        ["--apply=edit.safetensors", "--merge_to=edit.safetensors/x.safetensors"],
    ],
    "evaluate": [
        ["--continue_from_run=run_999"],
        ["--ds_name=zsre", "--data_path=cf.json"],
        ["--data_path=cf.json", "--snippets_path=cf.json"],
        ["--alg_name=MEND", "--hypernetwork=edit.safetensors"],
        *(
            [f"--data_path={path}"]
            for path in ("folder", "texts.txt", "number.json", "edit.safetensors", "results.json")
        ),
        ["--generation", "--tfidf_dir=folder"],
        ["--generation", "--snippets_path=texts.txt"],
        ["--continue_from_run=../ROME"],
        ["--continue_from_run=ROME/run_000"],
        ["--results_dir=cf.json"],
        ["--max_tokens=255"],
    ],
    "layer_stats": [
        ["--num_articles=1", "--num_tokens=1"],
        ["--layers=0-999999999999"],
        ["--layers=99"],
        ["--batch_tokens=99999999999"],
        ["--batch_tokens=1"],
        ["--sequence_length=99999999999"],
        ["--num_tokens=1,2"],
        *(
            [f"--layers={layers}"]
            for layers in ("", ",", "0,,1", "1e3", "0-", "-1", "all,0", "5-0", "0" * 5000, "0-6")
        ),
        ["--layers=" + ",".join(["0-9999"] * 1000)],
        *(
            [f"--dataset={path}"]
            for path in ("folder", "empty.json", "cf.json", "edit.safetensors", "blank.jsonl")
        ),
        ["--dataset=texts.jsonl", "--text_key=nothing"],
        ["--num_articles=1e3"],
        ["--num_tokens=-5"],
        ["--num_tokens=" + "9" * 5000],
    ],
    "causal_trace": [
        ["--prompt={} is in"],
        ["--target=x"],
        ["--contrast=x"],
        ["--screen=5", "--severed"],
        ["--window=99"],
        ["--noise_level=s1e400"],
        ["--noise_level=s0"],
        ["--samples=99999999999"],
        *([f"--fact_file={path}"] for path in ("cf.json", "texts.txt", "folder", "blank.txt")),
        *([f"--noise_level={level}"] for level in ("t0", "x3", "s-1", "t", "u", "s" + "9" * 5000)),
        ["--noise_level=m", "--noise_corpus=blank.jsonl"],
        ["--kinds="],
        ["--window=0"],
        ["--prompt={} is in", "--subject=Rome", "--fact_file=cf.json"],
    ],
    "mass_edits": [
        *([f"--counts={counts}"] for counts in ("0", "1e3", "1-5", "1,x", "9" * 5000, "99999999")),
        ["--output_dir=cf.json"],
        ["--ds_name=zsre", "--data_path=cf.json"],
    ],
    "sequence": [
        *([f"--counts={counts}"] for counts in ("0", "1e3", "1-5", "1,x", "9" * 5000, "101")),
        ["--counts=1", "--every=1"],
        ["--num_cases=877"],
        ["--batch_size=0"],
        ["--output_dir=cf.json"],
        ["--data_path=number.json"],
        ["--data_path=zsre.json"],
        *(
            ["--ds_name=zsre", f"--data_path={path}"]
            for path in ("cf.json", "sample", "number.json", "folder")
        ),
        ["--ds_name=zsre", "--num_cases=877"],
    ],
    "sequential_edits": [
        ["--num_cases=0"],
        ["--output_dir=cf.json"],
        ["--data_path=number.json"],
        ["--ds_name=zsre", "--data_path=cf.json"],
    ],
    "statistics_table": [
        *([f"--num_tokens={number}"] for number in ("-1", "1e3", "x", "9" * 5000)),
    ],
    "compare_sequences": [
        ["--sequences="],
        ["--sequences=cf.json"],
        ["--sequences=results/ROME/run_000"],
        ["--sequences=sequence,sequence"],
        ["--sequences=sequence", "--output=/dev/full"],
        ["--sequences=sequence", "--plot=figure.bmp"],
    ],
    "summarize": [
        ["--dir_name=ROME/run_000", "--runs=run_000"],
        ["--dir_name=ROME", "--output=/dev/full"],
        ["--dir_name=ROME", "--runs=../ROME/run_000"],
        ["--dir_name="],
        ["--dir_name=cf.json"],
        ["--dir_name=easyedit"],
        ["--dir_name=easyedit/one"],
        ["--dir_name=ROME", "--columns=nonsense"],
        ["--dir_name=ROME", "--first_n_cases=0"],
        ["--dir_name=ROME", "--output=folder/."],
    ],
    "train_factworld": [
        ["--family=gpt2"],
        ["--output_dir=x"],
        ["--family=gpt2", "--output_dir=x", "--steps=0"],
    ],
    "train_hypernetwork": [
        ["--alg_name=ROME"],
        ["--data_path=cf.json", "--model_name=nowhere/nothing"],
    ],
    "sweep": [
        ["--sweep=layers=0", "--sweep=layers=1"],
        ["--sweep=v_lr=nan"],
        [],
        *(
            [f"--sweep={values}"]
            for values in ("nonsense=1", "layers", "layers=", "=1", "v_lr=1e400", "layers=0-99")
        ),
        ["--sweep=v_lr=0.1,0.1"],
        ["--sweep=layers=0", "--sweep_name=."],
        [
            f"--sweep=v_lr={','.join(map(str, range(1, 2000)))}",
            f"--sweep=v_num_grad_steps={','.join(map(str, range(1, 2000)))}",
        ],
    ],
    "compare": [
        ["--algs=ROME", "--alg_name=FT"],
        ["--algs=ROME", "--alg_name=ROME"],
        *([f"--alg_name={name}"] for name in ("ROME,FT", "FT+RECT", "MEMIT+", "MEMIT+RECT+RECT")),
        ["--alg_name=FT", "--config=configs/rome.py:gpt2-xl"],
        ["--alg_name=FT", "--config.lr=0.1"],
        ["--hypernetworks=MEND=nothing", "--alg_name=ROME"],
        ["--hypernetworks=MEND=nothing", "--algs=ROME"],
        ["--hypernetworks=MEND"],
        *([f"--algs={names}"] for names in ("", ",", "ROME,ROME", "ROME,,FT", "rome ft")),
        ["--hypernetworks=MEND=edit.safetensors", "--algs=MEND"],
        ["--hypernetworks=MEND=a,MEND=b", "--algs=MEND"],
        ["--plot=new.bmp"],
        ["--plot=new"],
    ],
}
