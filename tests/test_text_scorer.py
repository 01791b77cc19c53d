"""Reading text in batches says what reading it one by one says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignment_rl import learner, sharding, text_scorer


@pytest.fixture(scope='module')
def readings():
  """Contexts and ragged groups of continuations, of every length."""
  rng = np.random.default_rng(5)
  words = lambda n: ''.join(rng.choice(list('abc é.'), n))
  contexts = [words(n) for n in (1, 15, 16, 17, 3, 9, 5, 28, 12, 16, 2)]
  sizes = [1, 3, 1, 3, 1, 3, 3, 1, 3, 1, 1]
  return contexts, [
    [words(rng.integers(1, 13)) for _ in range(size)] for size in sizes
  ]


@pytest.fixture(scope='module')
def expected(tiny, readings):
  """Each continuation read alone, as one sequence: sums and mean states."""

  @jax.jit
  def forward(params, tokens):
    positions = jnp.arange(64)[None, None]
    hidden, _ = tiny.decoder.apply(
      {'params': params}, tokens[None, None], positions
    )
    logits = tiny.decoder.apply({'params': params}, hidden, method='logits')
    return jax.nn.log_softmax(logits)[0, 0], hidden[0, 0]

  def read(context, continuation):
    before = tiny.tokenizer.encode(context)
    after = tiny.tokenizer.encode(continuation)
    tokens = np.zeros(64, np.int32)
    n = len(before) + len(after)
    tokens[:n] = before + after
    logprobs, hidden = forward(tiny.params, tokens)
    predicting = np.arange(len(before) - 1, n - 1)
    return logprobs[predicting, after].sum(), hidden[len(before) : n].mean(0)

  return [
    [np.array(x) for x in zip(*(read(context, c) for c in group), strict=True)]
    for context, group in zip(*readings, strict=True)
  ]


def check_readings(scorer, readings, expected, order):
  contexts, groups = ([x[i] for i in order] for x in readings)
  done = []
  sums = scorer.logprobs(contexts, groups, progress=done.append)
  states = scorer.features(contexts, groups)
  assert sum(done) == len(contexts)
  for i, a, b in zip(order, sums, states, strict=True):
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a, expected[i][0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(b, expected[i][1], rtol=1e-5, atol=1e-4)


def test_text_scorer_equals_reading_one_by_one_in_any_order(
  tiny, one_device, readings, expected
):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device, rows=4
  )
  order = list(range(len(readings[0])))
  check_readings(scorer, readings, expected, order)
  check_readings(scorer, readings, expected, order[::-1])
  check_readings(scorer, readings, expected, [7, 1])


def test_text_scorer_does_not_depend_on_the_mesh(
  tiny, mesh, readings, expected
):
  shardings = learner.param_shardings(tiny.decoder, mesh)
  params = sharding.to_global(tiny.params, shardings)
  scorer = text_scorer.TextScorer(
    tiny.decoder, params, tiny.tokenizer, mesh, rows=4
  )
  # Fewer contexts than devices, so that some rows of a batch are fillers.
  check_readings(scorer, readings, expected, [6, 1, 8, 3, 5])


def test_text_scorer_of_nothing_is_nothing(tiny, one_device):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device
  )
  assert scorer.logprobs([], []) == []


@pytest.mark.parametrize('coarse', [False, True])
def test_a_stream_reads_what_is_wanted_in_the_same_batches(
  tiny, one_device, readings, expected, coarse
):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device, rows=3,
    coarse=coarse,
  )  # fmt: skip
  every = list(scorer.stream(*readings))
  assert sorted(i for batch in every for i, _ in batch) == list(range(11))
  for i, sums in (pair for batch in every for pair in batch):
    np.testing.assert_allclose(sums, expected[i][0], rtol=1e-5, atol=1e-4)
  # Of two batches one row each is wanted: those batches, to the same bits.
  wanted = {every[1][0][0], every[-1][-1][0]}
  some = list(scorer.stream(*readings, wanted=wanted.__contains__))
  for a, b in zip(some, [every[1], every[-1]], strict=True):
    assert [i for i, _ in a] == [i for i, _ in b]
    for (_, x), (_, y) in zip(a, b, strict=True):
      np.testing.assert_array_equal(x, y)


def test_a_text_without_context_is_read_after_the_start(tiny, one_device):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device
  )
  (empty,) = scorer.logprobs([''], [('abc', 'ba')])
  (said,) = scorer.logprobs([[tiny.tokenizer.start_id]], [('abc', 'ba')])
  np.testing.assert_array_equal(empty, said)


def test_other_parameters_run_in_the_same_programs(tiny, one_device, readings):
  scorer = text_scorer.TextScorer(
    tiny.decoder, tiny.params, tiny.tokenizer, one_device
  )
  before = scorer.logprobs(*readings)
  half = scorer.with_params(jax.tree.map(lambda x: x / 2, tiny.params))
  changed = half.logprobs(*readings)
  assert not np.allclose(np.concatenate(before), np.concatenate(changed))
  for a, b in zip(before, scorer.logprobs(*readings), strict=True):
    np.testing.assert_array_equal(a, b)
  assert half.fingerprint() != scorer.fingerprint()
