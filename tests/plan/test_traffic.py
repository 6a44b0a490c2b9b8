"""Bytes moved by a program: on its text, and on what XLA makes of a loop here."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from medvlp_jax.plan import traffic

HLO = """
%fused (p0: f32[8,256], p1: s32[]) -> f32[1,256] {
  %p0 = f32[8,256]{1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  ROOT %slice = f32[1,256]{1,0:T(8,128)} dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,256}
}

%update (q0: f32[8,256], q1: f32[1,256], q2: s32[]) -> f32[8,256] {
  %q0 = f32[8,256]{1,0} parameter(0)
  %q1 = f32[1,256]{1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %dus = f32[8,256]{1,0} dynamic-update-slice(%q0, %q1, %q2)
}

%body (b: (s32[], f32[8,256])) -> (s32[], f32[8,256]) {
  %b = (s32[], f32[8,256]{1,0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%b), index=0
  %x = f32[8,256]{1,0:T(8,128)} get-tuple-element(%b), index=1
  %row = f32[1,256]{1,0:T(8,128)} fusion(%x, %i), kind=kLoop, calls=%fused
  %near = f32[1,256]{1,0:T(8,128)S(1)} negate(%row), metadata={op_name="jit(f)/model/stage1_block2/conv1/neg"}
  %new = f32[8,256]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%update
  ROOT %out = (s32[], f32[8,256]{1,0}) tuple(%i, %new)
}

%condition (c: (s32[], f32[8,256])) -> pred[] {
  %c = (s32[], f32[8,256]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %length = s32[]{:T(128)} constant(8)
  ROOT %less = pred[] compare(%j, %length), direction=LT
}

ENTRY %main (a: f32[8,256]) -> f32[8,256] {
  %a = f32[8,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[8,256]{1,0}) tuple(%zero, %a)
  %w = (s32[], f32[8,256]{1,0}) while(%t), condition=%condition, body=%body
  %y = f32[8,256]{1,0} get-tuple-element(%w), index=1
  ROOT %z = bf16[8,256]{1,0} convert(%y)
}
"""


def test_bytes_of_a_program_by_hand():
    program = traffic.Program(HLO)
    row, whole = 4 * 256, 4 * 8 * 256
    moved = {i.name: (size, times) for size, times, i in program.executed()}
    # The slice is read and written, scalars are on the chip; so is %near, which is written back in place.
    assert moved == {"row": (2 * row, 8), "near": (row, 8), "new": (row, 8), "z": (whole + whole // 2, 1)}
    once, all_of = 4 * row + 1.5 * whole, 8 * 4 * row + 1.5 * whole
    assert traffic.loop_factor(program) == pytest.approx(all_of / once)
    assert ("model/stage1/conv/neg", 8 * row) in [(key, size) for size, _, key in traffic.by_source(program)]


def test_loops_of_a_program_compiled_here():
    x = jnp.ones((64, 64))
    compiled = jax.jit(lambda x: lax.scan(lambda c, _: (jnp.sin(c @ c), None), x, length=20)[0]).lower(x).compile()
    program = traffic.Program(compiled.as_text())
    assert 10 < traffic.loop_factor(program) <= 20  # what is outside counts once
