"""Options of XLA's compiler on CPU, with and without a jaxlib that knows them."""

import jax
import jax.numpy as jnp
import pytest

from medvlp_jax import compiler


@pytest.fixture(autouse=True)
def _asked_anew():
    compiler.known.cache_clear()
    yield
    compiler.known.cache_clear()


def test_products_of_large_programs_are_not_left_to_ynnpack():
    if not compiler.known():
        assert jax.__version_info__ >= (0, 11)
        pytest.skip("this jaxlib does not know the options")
    x = jnp.ones((64, 64))
    program = compiler.jit(lambda x: x @ x).lower(x).compile()
    assert "ynn_fusion" not in program.as_text()
    assert float(program(x)[0, 0]) == 64


def test_options_that_this_jaxlib_lacks_are_left_out(monkeypatch):
    monkeypatch.setattr(compiler, "PRODUCTS", {"xla_cpu_no_such_option": "1"})
    assert not compiler.known()
    assert compiler.jit(lambda x: x + 1)(1.0) == 2


def test_programs_for_other_platforms_get_no_options(monkeypatch):
    monkeypatch.setattr(compiler, "known", lambda: pytest.fail("asked for another platform"))
    compiler.jit(lambda x: x, platform="tpu")
