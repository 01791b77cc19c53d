"""What the backward pass computes again changes its memory, not its numbers."""

import dataclasses

import jax
import numpy as np
import pytest

from alignment_rl import checkpoint, forward
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import REMATS

# prompts [B, P], prompt_lengths [B], completions [B, G, C]
SHAPES = (2, 8), (2,), (2, 4, 33)


def gradient(model, remat):
  """jit of the gradient of what the update differentiates."""
  sizes = dataclasses.replace(model.config, remat=remat)
  decoder = model.decoder.clone(config=sizes)

  def loss(params, *rows):
    logprobs, _, values = forward.teacher_force(decoder, params, *rows)
    return logprobs.sum() + values.sum()

  return jax.jit(jax.grad(loss))


@pytest.mark.parametrize('remat', ['block', 'dots'])
def test_the_gradient_is_the_same(tiny, remat):
  rng = np.random.default_rng(0)
  prompts, lengths, completions = (
    rng.integers(1, 8, shape, dtype=np.int32) for shape in SHAPES
  )
  found, expected = (
    gradient(tiny, of)(tiny.params, prompts, lengths, completions)
    for of in (remat, 'none')
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_the_memory_of_many_layers_falls(make_tiny):
  layers = 8
  model = make_tiny(layers=layers)
  rows = [jax.ShapeDtypeStruct(shape, np.int32) for shape in SHAPES]
  taken = {
    remat: gradient(model, remat)
    .lower(model.params, *rows)
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
    for remat in REMATS
  }
  c = model.config
  states = 4 * np.prod(SHAPES[2][:2]) * (SHAPES[2][2] - 1)  # bytes by feature
  # 'block' keeps no mlp and no scores, 'dots' the mlp but no scores: at least
  # those of gate and up, and of a query head's scores, in all layers but one.
  assert taken['dots'] - taken['block'] > states * (layers - 1) * 2 * c.mlp
  seen = c.heads * (SHAPES[0][1] + SHAPES[2][2] - 1)
  assert taken['none'] - taken['dots'] > states * (layers - 1) * seen


def test_an_unknown_remat_is_refused():
  with pytest.raises(UserError, match="model.remat is 'all'.*'block'"):
    checkpoint.load_model('random:tiny', dtype='float32', remat='all')
