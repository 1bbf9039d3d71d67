"""Prints what fits on a device and which flags to give, counted from the shapes of a model without loading it.

    python -m eval.plan --model_name=gpt2-xl --device_memory=80GB
    python -m eval.plan --model_name=EleutherAI/gpt-j-6B --device_memory=24GB --dtype=bfloat16
    python -m eval.plan --model_name=gpt2-xl --device_memory=64GiB --platform=cpu
    python -m eval.plan --model_name=gpt2-xl --seconds

For each job it prints the peak of one device's memory at the default of the flag that bounds it, and the largest size
that fits. Requests have the lengths of CounterFact's. With --seconds it prints the operations, bytes, and estimated
seconds of the usual jobs on H100 GPUs; docs/scaling.md explains both. Nothing is downloaded.
"""

from __future__ import annotations

from eval import cli
from eval.flags import model, planning
from rome_jax.models.half_precision import stored_dtype
from rome_jax.models.registry import known_config, unknown_model
from rome_jax.scaling.plan import Plan
from rome_jax.scaling.setup import Setup
from rome_jax.terminal.plan_report import plan_lines, seconds_lines


def main() -> None:
    """Prints the plan, or the table of seconds."""
    name, device = model.NAME.value, planning.device()
    config = known_config(name)
    if config is None:
        raise unknown_model(name, "its shapes are not known without its config.json")
    dtype = model.DTYPE.value or stored_dtype(name)
    setup = Setup(config, dtype, device.platform, **planning.mesh())
    if planning.SECONDS.value:
        lines = seconds_lines(name, setup)
    else:
        lines = plan_lines(Plan.of(setup, device.usable, name), device.memory)
    print(*lines, sep="\n")


PROGRAM = cli.Program(main, takes="model_name dtype mesh device_memory platform seconds".split())

if __name__ == "__main__":
    PROGRAM.run()
