"""Moved: `python -m eval.train_factworld`, which `python -m rome_jax.factworld.train` still runs from a checkout."""

if __name__ == "__main__":
    import runpy

    runpy.run_module("eval.train_factworld", run_name="__main__", alter_sys=True)
