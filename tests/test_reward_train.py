"""The reward model's equations, its frozen states, and the program."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from four_programs import RUBRIC

from alignment_rl import (
  checkpoint,
  forward,
  learner,
  optimizers,
  reward_learner,
  reward_train,
  sharding,
  text_scorer,
)
from alignment_rl.errors import UserError
from alignment_rl.rewards import criterion
from alignment_rl.types import Example, Message
from configs import reward_model


def example(replies=('up', 'down', 'hm'), rubric=RUBRIC, id='x'):
  names = (
    reward_learner.REPLIES if len(replies) == 3 else ('helpful', 'unhelpful')
  )
  return Example(
    id,
    (Message('user', 'Which way?'),),
    metadata={
      'rubric': rubric,
      'mirror': '',
      'replies': dict(zip(names, replies, strict=True)),
    },
  )


def items(tiny, *examples, rubric='scenario'):
  return [
    reward_learner.make_item(e, rubric, tiny.tokenizer, 4096) for e in examples
  ]


def test_pairs_of_a_scenario_by_hand(tiny):
  (item,) = items(tiny, example())
  # Over the violating reply by every criterion, over the refusal by positive
  # points: 3, -1 and 3 of 7.
  np.testing.assert_allclose(item.weights * 7, [[3, -1], [3, 0], [0, 0]])
  decode = tiny.tokenizer.decode
  assert [decode(s) for s in item.statements] == [
    ' It is up.', ' It is down.', ' It ran.', ' It stood.'
  ]  # fmt: skip
  assert decode(item.contexts[1]) == criterion.frame(example(), 'down')


def test_helpfulness_has_no_opinion_between_the_two_that_answer(tiny):
  (item,) = items(tiny, example(), rubric='helpfulness')
  assert (item.weights[0] == 0).all() and (item.weights[1:] > 0).all()
  (chat,) = items(tiny, example(('yes', 'well')), rubric='helpfulness')
  assert (chat.weights[0] > 0).all() and (chat.weights[1:] == 0).all()
  for one in (item, chat):
    assert np.abs(one.weights).sum() == pytest.approx(1)


def test_an_example_without_contrast_or_too_long_is_named(tiny):
  bare = Example('bare', (Message('user', 'q'),), metadata={'rubric': RUBRIC})
  with pytest.raises(UserError, match='bare has replies .* traits and chat'):
    items(tiny, bare)
  with pytest.raises(
    UserError, match='x takes .*over config.reward_model.length=9'
  ):
    reward_learner.make_item(example(), 'scenario', tiny.tokenizer, 9)


def test_the_loss_by_hand():
  """One item, two criteria; the second is met by the worse reply."""
  found = np.array([[2.0, -1.0], [-2.0, 1.0], [0.0, 5.0]], np.float32)
  weights = np.zeros((1, 3, 2), np.float32)
  weights[0, 0] = [0.5, -0.25]  # margins 4 and 2
  weights[0, 1, 0] = 0.25  # margin 2
  value, accuracy = reward_learner.loss(found, weights, 2.0)
  softplus = lambda x: np.log1p(np.exp(x))
  expected = 0.5 * softplus(-2) + 0.25 * softplus(-1) + 0.25 * softplus(-1)
  assert float(value) == pytest.approx(expected, rel=1e-6)
  assert float(accuracy) == 1
  _, wrong = reward_learner.loss(-found, weights, 2.0)
  assert float(wrong) == 0


def test_twins_have_the_same_loss(tiny):
  """Exchanged replies under exchanged statements say the same thing."""
  swapped = [c | {'met': c['failed'], 'failed': c['met']} for c in RUBRIC]
  one = example(('up', 'down', 'hm'))
  two = example(('down', 'up', 'hm'), swapped)
  both = reward_learner.pad(items(tiny, one, two), 256)
  both['weights'][:, 1:] = 0  # the refusal stays where it is
  found = reward_learner.contrasts(tiny.decoder, tiny.params, both)
  losses = [
    float(
      reward_learner.loss(found[i : i + 3], both['weights'][j : j + 1], 2)[0]
    )
    for i, j in ((0, 0), (3, 1))
  ]
  assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_contrasts_equal_those_of_the_reward(tiny, one_device):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device
  )
  e = example()
  batch = reward_learner.pad(items(tiny, e), 256)
  found = reward_learner.contrasts(tiny.decoder, tiny.params, batch)
  # The reward subtracts what the frame without a reply says.
  replies = list(e.metadata['replies'].values())
  gained = criterion.contrasts(scorer, [e] * 3, replies, [RUBRIC] * 3)
  (neutral,) = criterion.contrasts(scorer, [e], ['...'], [RUBRIC])
  np.testing.assert_allclose(neutral, 0, atol=1e-4)
  difference = np.asarray(found) - np.stack(gained)
  np.testing.assert_allclose(difference - difference[0], 0, atol=1e-3)


@pytest.mark.parametrize('frozen', [0, 1, 2])
def test_states_of_frozen_layers_change_no_number(tiny, mesh, frozen):
  shardings = learner.param_shardings(tiny.decoder, mesh)
  params = sharding.to_global(tiny.params, shardings)
  (lower, fixed), (upper, top) = forward.cut(tiny.decoder, params, frozen)
  jax.tree.map(
    np.testing.assert_array_equal, forward.join(fixed, top), tiny.params
  )
  shelf = reward_learner.Shelf(lower, fixed, mesh, 256)
  made = items(tiny, example(), example(('no', 'yes', 'so so, or so'), id='y'))
  for picked in (made, made[::-1]):  # the second time from the shelf
    batch = shelf.batch(picked)
    found = jax.jit(functools.partial(reward_learner.contrasts, upper))(
      top, batch
    )
    whole = jax.jit(functools.partial(reward_learner.contrasts, tiny.decoder))(
      tiny.params, reward_learner.pad(picked, 256)
    )
    np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('mesh', [(8, 1, 1), (2, 2, 2)], indirect=True)
def test_it_learns_which_reply_meets_a_statement(tiny, mesh):
  """Mirrors: the same two replies, and what they say decides."""
  tx = optimizers.make_optimizer(
    name='adamw', learning_rate=1e-2, warmup=0, steps=60, schedule='constant',
    clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.99,
  )  # fmt: skip
  trainable = 'layers/.*|final_norm'
  _, shardings = learner.state_shardings(tiny.decoder, tx, mesh, trainable)
  params = sharding.to_global(tiny.params, shardings.params)
  state = learner.fresh_state(params, tx, shardings, trainable)
  update = reward_learner.make_update(
    tiny.decoder, tx, shardings, mesh, trainable, 2.0
  )
  swapped = [c | {'met': c['failed'], 'failed': c['met']} for c in RUBRIC]
  pair = (example(), example(('down', 'up', 'hm'), swapped))
  batch = reward_learner.pad(items(tiny, *pair * 4), 256)
  batch = sharding.to_global(batch, sharding.rows(mesh))
  measured = []
  for _ in range(40):
    state, found = update(state, {}, batch)
    measured.append(jax.tree.map(float, found))
  assert measured[0]['loss'] > 0.3
  assert measured[-1]['loss'] < 0.1 and measured[-1]['accuracy'] == 1
  frozen = state.params['embed']
  np.testing.assert_array_equal(frozen, tiny.params['embed'])


def test_examples_are_left_out_by_name():
  make = lambda domain: dataclasses.replace(
    example(), metadata={'domain': domain}
  )
  both = [make('health'), make('law')]
  assert reward_train.keep(both, '') == both
  assert reward_train.keep(both, 'domain=health') == both[1:]
  for wrong in ('domain=sport', 'health', 'domain'):
    with pytest.raises(UserError, match=f"leave_out='{wrong}' leaves 2 of 2"):
      reward_train.keep(both, wrong)
  with pytest.raises(UserError, match='leaves 0 of 1'):
    reward_train.keep(both[:1], 'domain=health')


def test_it_runs_resumes_and_its_workdir_is_a_model(tmp_path):
  def run(name, steps, every):
    c = reward_model.get_config('tiny')
    c.steps, c.checkpoint.every = steps, every
    reward_train.reward_train(c, tmp_path / name)
    return checkpoint.load_model(str(tmp_path / name), dtype='float32')

  run('cut', 1, 1)
  resumed, straight = run('cut', 2, 1), run('straight', 2, 2)
  jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)
  # Only the upper of the two layers has moved.
  first, second = run('cut', 2, 1), run('longer', 3, 1)
  for name, one in first.params['layers'].items():
    other = second.params['layers'][name]
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] != other[1]).any(), name
  lines = [
    json.loads(line) for line in open(tmp_path / 'cut' / 'metrics.jsonl')
  ]
  assert [line['step'] for line in lines] == [0, 1]
