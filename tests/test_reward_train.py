"""The reward model learns to rank replies, and its measurement is right."""

import json

import numpy as np
import pytest

from alignment_rl import learner, optimizers, reward_train, rollout, sharding
from alignment_rl.types import Example
from configs import reward_model


def example(mirror, trait='truthfulness'):
  replies = {'beneficial': 'b', 'violating': 'v', 'refusal': 'r'}
  return Example('x', (), metadata={'mirror': mirror, 'replies': replies})


def test_pair_table_by_hand():
  """Two mirrors and one other; scores in the order b, v, r; a tie is half."""
  scores = np.array([3, 1, 2, 1, 2, 2, 5, 5, 0], np.float32)
  reward = lambda examples, texts, judge: scores
  table = reward_train.pair_table(
    reward, [example('t'), example('t'), example('')], None
  )
  # Mirrors: 3 > 1 and 1 < 2 against violating; 3 > 2 and 1 < 2 on refusal.
  assert table['mirrors'] == {'n': 2, 'violating': 0.5, 'refusal': 0.5}
  # The other: 5 = 5 is half a win, 5 > 0 a win.
  assert table['rest'] == {'n': 1, 'violating': 0.5, 'refusal': 1.0}


@pytest.mark.parametrize('mesh', [(8, 1, 1), (2, 2, 2)], indirect=True)
def test_it_learns_which_reply_wins_by_the_criterion(tiny, mesh):
  """Same replies under two criteria: the winner flips with what is read."""
  model = tiny.decoder
  params = tiny.params | {'reward_head': np.zeros(32, np.float32)}
  tx = optimizers.make_optimizer(
    name='adamw', learning_rate=3e-3, warmup=0, steps=60, schedule='constant',
    clip_norm=1.0, weight_decay=0.0, b1=0.9, b2=0.99,
  )  # fmt: skip
  _, shardings = learner.state_shardings(model, tx, mesh)
  params = sharding.to_global(params, shardings.params)
  state = learner.fresh_state(params, tx, shardings)
  update = reward_train.make_update(
    model, tx, shardings, mesh, (('beneficial', 'violating'),), '.*'
  )
  # Criterion 10 wants reply 1, criterion 20 wants reply 2; a mirror.
  prompts = np.array([[10, 30], [20, 30]] * 4, np.int32)
  replies = np.array([[[1], [2], [3]], [[2], [1], [3]]] * 4, np.int32)
  batch = (
    prompts, np.full(8, 2, np.int32), replies, np.ones((8, 3), np.int32)
  )  # fmt: skip
  batch = sharding.to_global(batch, sharding.rows(mesh))
  losses = []
  for _ in range(60):
    state, measured = update(state, batch)
    losses.append(float(measured['loss']))
  assert losses[0] == pytest.approx(np.log(2), abs=1e-6)  # a head of zeros
  assert losses[-1] < 0.1 and float(measured['accuracy']) == 1
  scores = np.asarray(rollout.reward_scores(model, state.params, *batch))
  assert (scores[0::2, 0] > scores[0::2, 1]).all()
  assert (scores[1::2, 0] > scores[1::2, 1]).all()


def test_it_runs_resumes_and_writes_what_it_measured(tmp_path):
  c = reward_model.get_config('tiny')
  c.reward_model.pairs = 8
  c.steps = 1
  c.checkpoint.every = 1
  reward_train.reward_train(c, tmp_path / 'run')
  c.steps = 2
  found = reward_train.reward_train(c, tmp_path / 'run')
  assert json.loads((tmp_path / 'run' / 'pairs.json').read_text()) == found
  assert set(found) == {'criterion', 'reward_model'}
  for parts in found.values():
    assert parts['mirrors']['n'] == 14 and parts['rest']['n'] == 28
    assert 0 <= parts['mirrors']['violating'] <= 1
  steps = [
    json.loads(line)['step'] for line in open(tmp_path / 'run/metrics.jsonl')
  ]
  assert steps == [0, 1]
