"""What each optimizer and schedule does to a gradient."""

import jax
import jax.numpy as jnp
import optax
import pytest

from alignment_rl import optimizers
from alignment_rl.errors import UserError

SETTINGS = {
  'name': 'adamw', 'learning_rate': 1e-2, 'warmup': 0, 'steps': 10,
  'schedule': 'constant', 'clip_norm': 0.0, 'weight_decay': 0.0,
  'b1': 0.9, 'b2': 0.99,
}  # fmt: skip
# Updates are minus the learning rate times the gradient.
SGD = {'name': 'sgd', 'learning_rate': 1.0}


@pytest.mark.parametrize('schedule', ['constant', 'linear', 'cosine'])
@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion', 'sgd'])
def test_every_optimizer_and_schedule_moves_every_parameter(name, schedule):
  settings = {'name': name, 'schedule': schedule, 'clip_norm': 1.0}
  tx = optimizers.make_optimizer(**SETTINGS | settings | {'warmup': 3})
  params = {'matrix': jnp.ones((4, 3)), 'vector': jnp.ones(3)}
  state = tx.init(params)
  step = jax.jit(tx.update)
  # The first of three steps of warm-up is not lost at a learning rate of 0.
  for _ in range(3):
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    updates, state = step(grads, state, params)
    assert all((u < 0).all() for u in jax.tree.leaves(updates))
    params = optax.apply_updates(params, updates)


@pytest.mark.parametrize('name', ['adamw', 'adafactor', 'lion', 'sgd'])
def test_weight_decay_shrinks_matrices_alone(name):
  tx = optimizers.make_optimizer(
    **SETTINGS | {'name': name, 'weight_decay': 0.1}
  )
  params = {'matrix': jnp.ones((4, 3)), 'vector': jnp.ones(3)}
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
  assert (updates['matrix'] < 0).all()
  assert (updates['vector'] == 0).all()


@pytest.mark.parametrize(
  'schedule, expected',
  [
    # Warm-up over 2 of 6 updates at a peak of 1: 1/2, 1 (its own end is the
    # peak), then over the 4 left: linear 1 - n/4, cosine (1 + cos(pi n/4))/2.
    ('constant', [0.5, 0.75, 1, 1, 1, 1]),
    ('linear', [0.5, 0.75, 1, 0.75, 0.5, 0.25]),
    ('cosine', [0.5, 0.75, 1, 0.853553, 0.5, 0.146447]),
  ],
)
def test_schedule_is_the_hand_worked_curve(schedule, expected):
  settings = {'schedule': schedule, 'warmup': 2, 'steps': 6}
  tx = optimizers.make_optimizer(**SETTINGS | SGD | settings)
  params = {'w': jnp.zeros(1)}
  state, found = tx.init(params), []
  for _ in expected:
    updates, state = tx.update({'w': jnp.ones(1)}, state, params)
    found.append(-float(updates['w'][0]))
  assert found == pytest.approx(expected, abs=1e-5)


def test_clip_norm_cuts_the_global_norm():
  # Gradient (3, 4) has norm 5; cut to 1 it is (0.6, 0.8).
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  found = []
  for clip_norm in (1.0, 10.0, 0.0):
    tx = optimizers.make_optimizer(**SETTINGS | SGD | {'clip_norm': clip_norm})
    updates, _ = tx.update(grads, tx.init(grads), grads)
    found.append([-float(updates['a'][0]), -float(updates['b'][0])])
  assert found == [pytest.approx([0.6, 0.8]), [3, 4], [3, 4]]


@pytest.mark.parametrize('field', ['name', 'schedule'])
def test_unknown_optimizer_or_schedule_lists_the_known(field):
  with pytest.raises(UserError, match=rf"optimizer\.{field} is 'adam'.*one of"):
    optimizers.make_optimizer(**SETTINGS | {field: 'adam'})
