"""Former name of `eval.train_factworld`, kept so that `python -m rome_jax.factworld.train` runs from a checkout."""

if __name__ == "__main__":
    import runpy

    runpy.run_module("eval.train_factworld", run_name="__main__", alter_sys=True)
