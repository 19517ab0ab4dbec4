"""Which implementation of the step runs, what it refuses, and the Triton kernel in the interpreter.

That the reference's step is the recurrence stands in `test_linear_attention_op.py`.
"""

import pytest
import torch
from interpreter import needs_triton, run

from zoology.kernels.linear_attention import LinearAttentionState, linear_attention_step


def inputs(dtype=torch.float32):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.rand(2, 3, n, generator=rng) for n in (4, 4, 6))
    kv, normaliser = torch.rand(2, 3, 15, 6, generator=rng), torch.rand(2, 3, 15, generator=rng)
    return q, k, v, LinearAttentionState(kv.to(dtype), normaliser.to(dtype))


def test_a_state_keeps_its_dtype_and_the_output_is_taken_before_it_is_rounded():
    q, k, v, state = inputs(torch.bfloat16)
    o, after = linear_attention_step(q, k, v, state, feature_map="taylor")
    assert [x.dtype for x in after] == [torch.bfloat16] * 2
    wide = LinearAttentionState(*(x.float() for x in state))
    want, expected = linear_attention_step(q, k, v, wide, feature_map="taylor")
    assert torch.equal(o, want)
    for got, exact in zip(after, expected, strict=True):
        assert torch.equal(got, exact.bfloat16())


def test_a_state_of_another_shape_is_named():
    q, k, v, state = inputs()
    with pytest.raises(ValueError, match=r"state has the shapes \(2, 3, 15, 6\).*\(2, 3, 4, 6\), \(2, 3, 4\)"):
        linear_attention_step(q, k, v, state)
    with pytest.raises(ValueError, match=r"state has the shapes \(2, 3, 15, 6\), \(2, 3, 0\)"):
        linear_attention_step(q, k, v, LinearAttentionState.of_sum(state.kv), feature_map="taylor")
    with pytest.raises(ValueError, match="'fast': must be"):
        linear_attention_step(q, k, v, state, feature_map="taylor", implementation="fast")


@needs_triton
def test_the_kernel_in_the_interpreter():
    run("interpreted_linear_attention_step.py")
