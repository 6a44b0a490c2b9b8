"""A run folder as one self-contained HTML file, or several runs side by side:  python -m medvlp_jax.report RUN ..."""
