"""Planning a run for hardware that is not there: `python -m medvlp_jax.plan`."""
