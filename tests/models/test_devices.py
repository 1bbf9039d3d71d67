"""The memory of the first device."""

from rome_jax.files.memory import machine_memory
from rome_jax.models.devices import device_memory, memory_figure


def test_the_memory_of_a_cpu_is_that_of_the_machine():
    assert device_memory() == machine_memory() > 10**9
    assert memory_figure("bytes_limit") is None
