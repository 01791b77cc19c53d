"""The server: its engine against the Sampler, its protocol against a client.

Real sockets on loopback and the official client; no test asks whether something
was fast, and every wait ends at an event.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import openai
import pytest
import scipy.stats
import tokenizers
import uvicorn

from alignment_rl import (
  forward,
  learner,
  pool,
  rollout,
  serve,
  serving,
  sharding,
  streaming,
  text,
  wire,
)
from alignment_rl.answering import Service
from alignment_rl.serving import Ask
from alignment_rl.types import Message

ROOT = pathlib.Path(__file__).parent.parent
CONTEXT, BATCH, QUEUE, STEPS = 320, 4, 12, 3
PATIENCE = 120  # Seconds until a test gives up; none is meant to take them.


def make_engine(model, mesh, tokenizer=None, **changes):
  shardings = learner.param_shardings(model.decoder, mesh)
  sizes = {'batch': BATCH, 'context': CONTEXT, 'queue': QUEUE, 'steps': STEPS}
  return serving.Engine(
    model.decoder, sharding.to_global(model.params, shardings),
    tokenizer or model.tokenizer, mesh, **sizes | changes,
  )  # fmt: skip


@pytest.fixture(scope='module')
def engine(tiny, one_device):
  return make_engine(tiny, one_device)


@pytest.fixture(scope='module')
def service(tiny, engine):
  return Service(engine, tiny, 'tiny')


@contextlib.contextmanager
def running(app):
  """The app behind a real server; its address."""
  place = socket.socket()
  place.bind(('127.0.0.1', 0))
  server = uvicorn.Server(uvicorn.Config(app, log_level='error'))
  thread = threading.Thread(target=server.run, args=([place],))
  thread.start()
  until(lambda: server.started)
  try:
    yield place.getsockname()
  finally:
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope='module')
def address(service):
  limits = serve.Limits(body=50_000, seconds=3.0)
  with running(serve.make_app(service, limits=limits)) as found:
    yield found


@pytest.fixture(scope='module')
def client(address):
  with make_client(address) as found:
    yield found


def make_client(address, key='none'):
  # A proxy of the environment would stand between the client and the loopback.
  return openai.OpenAI(
    base_url=f'http://127.0.0.1:{address[1]}/v1', api_key=key, max_retries=0,
    timeout=PATIENCE, http_client=openai.DefaultHttpxClient(trust_env=False),
  )  # fmt: skip


def until(true):
  end = time.monotonic() + PATIENCE
  while not true():
    assert time.monotonic() < end, 'waited in vain'
    time.sleep(0.01)


def idle(engine):
  """Nothing waits and no row is taken."""
  return not (engine._asks or engine._prompts or engine._active())


def heard(pieces):
  """The next thing that the engine says."""
  return pieces.get(timeout=PATIENCE)


def hold(engine, true, monkeypatch):
  """Lets the engine add tokens once, and again only when `true`."""
  advance = engine._advance

  def held(size):
    advance(size)
    until(true)

  monkeypatch.setattr(engine, '_advance', held)


def complete(engine, asks):
  """Every ask to its end: a Piece with all text and tokens of it, each."""
  ears = [queue.Queue() for _ in asks]
  engine.complete(asks, [ear.put for ear in ears])
  return [join(ear) for ear in ears]


def join(ear):
  text, tokens = '', ()
  while True:
    piece = heard(ear)
    assert not isinstance(piece, serving.Failure), piece
    text, tokens = text + piece.text, tokens + piece.tokens
    if piece.finish:
      return dataclasses.replace(piece, text=text, tokens=tokens)


def score(engine, prompts, top=0):
  ears = [queue.Queue() for _ in prompts]
  engine.score(prompts, [ear.put for ear in ears], top)
  return [heard(ear) for ear in ears]


def ids(piece):
  return [token.id for token in piece.tokens]


def random_prompt(n, seed=0):
  return tuple(np.random.default_rng((n, seed)).integers(0, 256, n).tolist())


def likely(model, prompt, length):
  """What the Sampler writes at temperature 0, EOS included."""
  devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
  mesh = jax.sharding.Mesh(devices, sharding.AXES)
  sampler = rollout.Sampler(
    model.decoder, mesh, group=1, length=length,
    eos_ids=model.tokenizer.eos_ids, temperature=0.0,
  )  # fmt: skip
  prompts, lengths = text.pad([prompt], text.bucket(len(prompt), 64), 0)
  found = sampler(model.params, prompts, lengths, [0], jax.random.key(0))
  n = int(found.lengths[0, 0])
  return (
    found.completions[0, 0, :n].tolist(), found.logprobs[0, 0, :n].tolist()
  )  # fmt: skip


# ------------------------------------------------------------------ the engine


@pytest.mark.parametrize('n', [1, 5, 33, 250])
def test_greedy_text_is_the_samplers(tiny, engine, n):
  """The row of 250 tokens outgrows its pool on the way."""
  prompt = random_prompt(n)
  tokens, logprobs = likely(tiny, prompt, 20)
  (found,) = complete(engine, [Ask(prompt, 20, temperature=0.0, top=2)])
  assert ids(found) == tokens
  assert found.count == len(tokens)
  np.testing.assert_allclose(
    [t.logprob for t in found.tokens], logprobs, atol=1e-4
  )
  for token in found.tokens:
    assert token.top[0] == (token.id, token.logprob)
    assert token.top[1][1] <= token.logprob
  without = [i for i in tokens if i not in tiny.tokenizer.eos_ids]
  assert found.text == tiny.tokenizer.decode(without)


def test_a_seeded_row_is_the_same_bits_alone_and_in_any_company(engine):
  def ask(i, **changes):
    return Ask(random_prompt(3 + 9 * i, 1), 14, seed=2**63 + i, **changes)

  mine = ask(1, temperature=1.3, top=3)
  (alone,) = complete(engine, [mine])
  others = [ask(0, temperature=0.0), ask(2, top_p=0.5), ask(3), ask(4)]
  for at in range(4):
    company = others[:at] + [mine] + others[at:]
    assert complete(engine, company)[at] == alone
  # And the noise is the seed's, the choice's and the token's own.
  changed = [
    dataclasses.replace(mine, seed=mine.seed ^ 1 << 40),
    dataclasses.replace(mine, choice=1),
  ]
  texts = {tuple(ids(piece)) for piece in complete(engine, [mine, *changed])}
  assert len(texts) == 3
  (short,) = complete(engine, [dataclasses.replace(mine, max_tokens=5)])
  assert ids(short) == ids(alone)[:5]


def test_a_program_is_compiled_once_a_shape(engine):
  complete(engine, [Ask(random_prompt(20, i), 4) for i in range(5)])
  before = list(engine.programs)
  assert len(set(before)) == len(before)
  complete(engine, [Ask(random_prompt(n), 4) for n in range(18, 33)][:QUEUE])
  assert engine.programs == before
  functions = (engine._score, engine._read, engine._place, engine._extend)
  assert len(before) == sum(f._cache_size() for f in functions)


def many_rows(model, kinds, n):
  """A pool with one prompt in every row, and rows of these kinds by turns."""
  prompt, length = np.array([[3, 1, 6, 2]], np.int32), np.array([3], np.int32)
  source = jax.jit(functools.partial(pool.read, model.decoder))(
    model.params, prompt, length
  )
  repeat = lambda x: np.repeat(
    np.pad(x, [(0, 0)] * 2 + [(0, 4)] + [(0, 0)] * 2), n, 1
  )
  cache = jax.tree.map(repeat, source.cache)
  temperatures, top_ps = np.resize(np.array(kinds, np.float32), (n, 2)).T
  rows = pool.Rows(
    lengths=np.full(n, 3, np.int32),
    counts=np.zeros(n, np.int32),
    seeds=np.stack([np.full(n, 7), np.arange(n)], 1).astype(np.uint32),
    choices=np.zeros(n, np.int32),
    temperatures=temperatures,
    top_ps=top_ps,
    free=np.zeros(n, bool),
  )
  return pool.Pool(cache, np.repeat(source.hidden, n, 0)), rows


def test_sampled_tokens_follow_the_tempered_softmax(make_tiny):
  """Rows of three temperatures and a nucleus in one batch."""
  V, n = 8, 4096
  model = make_tiny(vocab=V)
  kinds = [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7)]
  full, rows = many_rows(model, kinds, n)
  step = jax.jit(functools.partial(pool.extend, model.decoder, 1, (V,)))
  _, found = step(model.params, full, rows)
  tokens = np.asarray(found.tokens)[:, 0]
  logits = model.decoder.apply(
    {'params': model.params}, full.hidden[0], method='logits'
  )
  logits = np.asarray(logits, np.float64)
  logprobs = logits - scipy.special.logsumexp(logits)
  np.testing.assert_allclose(found.logprobs[:, 0], logprobs[tokens], atol=1e-4)
  for i, (temperature, top_p) in enumerate(kinds):
    expected = scipy.special.softmax(logits / temperature)
    expected[~nucleus_by_hand(expected, top_p)] = 0
    expected *= n / 4 / expected.sum()
    counts = np.bincount(tokens[i::4], minlength=V)
    seen = expected > 0
    assert counts[~seen].sum() == 0
    test = scipy.stats.chisquare(counts[seen], expected[seen])
    assert test.pvalue > 1e-3


def test_pairs_of_tokens_follow_the_softmax_in_one_step_or_two(make_tiny):
  """Each token has its own noise, wherever the pieces are cut."""
  V, n = 8, 4096
  model = make_tiny(vocab=V)
  full, rows = many_rows(model, [(1.0, 1.0)], n)
  step = lambda steps: jax.jit(
    functools.partial(pool.extend, model.decoder, steps, (V,))
  )
  _, pairs = step(2)(model.params, full, rows)
  first, second = np.asarray(pairs.tokens).T
  counts = np.zeros((V, V))
  np.add.at(counts, (first, second), 1)
  every = np.stack(np.meshgrid(np.arange(V), np.arange(V), indexing='ij'), -1)
  logprobs, _, _ = jax.jit(
    functools.partial(forward.teacher_force, model.decoder)
  )(
    model.params, np.array([[3, 1, 6]]), np.array([3]),
    every.reshape(1, V * V, 2),
  )  # fmt: skip
  expected = np.exp(np.asarray(logprobs, np.float64).sum(-1)).reshape(V, V)
  expected *= n / expected.sum()
  # Rare pairs together, as chi-square wants five or more in a cell.
  rare = expected < 5
  join = lambda x: np.append(x[~rare], x[rare].sum())
  assert scipy.stats.chisquare(join(counts), join(expected)).pvalue > 1e-3
  after, one = step(1)(model.params, full, rows)
  more = rows.replace(lengths=rows.lengths + 1, counts=rows.counts + 1)
  _, two = step(1)(model.params, after, more)
  # Another program rounds in another way: a near tie may go to either.
  same = pairs.tokens == np.concatenate([one.tokens, two.tokens], 1)
  assert same.mean() > 0.999


def nucleus_by_hand(probs, top_p):
  """Which tokens are among the fewest that have `top_p` together."""
  if top_p == 1:
    return np.full(len(probs), True)
  order = np.argsort(-probs)
  size = 1
  while probs[order[:size]].sum() < top_p:
    size += 1
  return np.isin(np.arange(len(probs)), order[:size])


def test_the_nucleus_is_the_fewest_likeliest_tokens():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(200, 50)).astype(np.float32) * 3
  top_ps = rng.uniform(0.01, 0.999, 200).astype(np.float32)
  top_ps[:2] = 1e-6, 1.0
  logits[1] = np.linspace(40, -40, 50)  # Its tail is lost in rounding.
  found = np.isfinite(jax.jit(pool.nucleus)(logits, top_ps))
  for row, p, kept in zip(logits.astype(float), top_ps, found, strict=True):
    expected = nucleus_by_hand(scipy.special.softmax(row), p)
    np.testing.assert_array_equal(kept, expected)
  assert found[0].sum() == 1 and found[1].all()


def test_a_temperature_near_zero_is_greedy(engine):
  prompt = random_prompt(9)
  cold, greedy = complete(
    engine, [Ask(prompt, 8, temperature=t) for t in (1e-30, 0.0)]
  )
  assert ids(cold) == ids(greedy)


def test_scores_are_those_of_teacher_force(tiny, engine):
  prompts = [random_prompt(n, 2) for n in (40, 1, 2, 33, 47)]
  force = jax.jit(functools.partial(forward.teacher_force, tiny.decoder))
  for prompt, found in zip(prompts, score(engine, prompts, 3), strict=True):
    assert found.text == tiny.tokenizer.decode(prompt)
    assert ids(found) == list(prompt)
    assert found.tokens[0].logprob is None and found.tokens[0].top == ()
    whole, _ = text.pad([prompt], 48, 0)
    expected, _, _ = force(
      tiny.params, whole[:, :1], np.array([1]), whole[:, None, 1:]
    )
    np.testing.assert_allclose(
      [t.logprob for t in found.tokens[1:]],
      expected[0, 0, : len(prompt) - 1],
      atol=1e-4,
    )
    for token in found.tokens[1:]:
      said = dict(token.top)
      assert list(said.values()) == sorted(said.values(), reverse=True)
      assert said.get(token.id, token.logprob) == token.logprob
      assert token.logprob <= token.top[0][1] and len(said) == 3


def test_what_follows_a_scored_prompt_is_what_greedy_adds(engine):
  prompts = [random_prompt(n, 3) for n in (3, 20, 64)]
  asks = [Ask(prompt, 1, temperature=0.0) for prompt in prompts]
  for found, one in zip(
    score(engine, prompts), complete(engine, asks), strict=True
  ):
    assert (found.next.text, ids(found.next)) == (one.text, ids(one))
    assert (found.next.count, found.next.finish) == (1, one.finish)


def test_every_eos_ends_its_row_and_is_counted(tiny, one_device):
  ends = tuple(range(3, 264, 5))
  tokenizer = text.ByteTokenizer()
  tokenizer.eos_ids = ends
  engine = make_engine(tiny, one_device, tokenizer)
  asks = [Ask(random_prompt(6, i), 9, seed=i) for i in range(QUEUE)]
  found = complete(engine, asks)
  engine.close()
  for piece in found:
    ended = [i in ends for i in ids(piece)]
    assert not any(ended[:-1]) and len(ended) == piece.count
    assert piece.finish == ('stop' if ended[-1] else 'length')
    assert ended[-1] or piece.count == 9
    assert piece.text == tokenizer.decode(
      [i for i in ids(piece) if i not in ends]
    )
  assert len({piece.count for piece in found}) > 2


def test_a_meshs_rows_are_those_of_one_device(tiny, engine, mesh):
  asks = [Ask(random_prompt(5 + 9 * i, 4), 7, seed=i) for i in range(3)]
  split = make_engine(tiny, mesh)
  found = complete(split, asks)
  scored = score(split, [ask.tokens for ask in asks])
  split.close()
  for a, b in zip(found, complete(engine, asks), strict=True):
    assert (a.text, ids(a), a.finish) == (b.text, ids(b), b.finish)
  expected = score(engine, [ask.tokens for ask in asks])
  for a, b in zip(scored, expected, strict=True):
    np.testing.assert_allclose(
      [t.logprob for t in a.tokens[1:]],
      [t.logprob for t in b.tokens[1:]],
      atol=1e-4,
    )


def test_a_row_that_cannot_be_computed_fails_alone(make_tiny, one_device):
  """Token 7 has no embedding: whoever says it gets no number."""
  model = make_tiny(tied=False)
  model.params['embed'][7] = np.nan
  engine = make_engine(model, one_device)
  good = [Ask((1, 2, 3), 9, seed=1), Ask((5, 5), 9, seed=2, temperature=0.0)]
  alone = complete(engine, good)
  assert not any(7 in ids(piece) for piece in alone)
  ears = [queue.Queue() for _ in range(3)]
  asks = [good[0], Ask((4, 7), 9), good[1]]
  engine.complete(asks, [ear.put for ear in ears])
  assert isinstance(heard(ears[1]), serving.Failure)
  assert [join(ears[0]), join(ears[2])] == alone
  bad, fine = score(engine, [(4, 7, 4), (4, 4, 4)])
  assert isinstance(bad, serving.Failure) and fine.tokens[1].logprob < 0
  until(lambda: idle(engine))
  engine.close()


def test_a_failed_program_fails_its_rows_and_the_engine_goes_on(
  tiny, one_device, monkeypatch
):
  engine = make_engine(tiny, one_device)
  ask = Ask((1, 2, 3), 40, seed=1)
  (expected,) = complete(engine, [ask])
  rounds, advance = itertools.count(), engine._advance

  def second_round_fails(size):
    """As when the device runs out of memory and takes the cache with it."""
    # Here, between two rounds: the engine may be anywhere when others look.
    if next(rounds) == 1:
      for leaf in jax.tree.leaves(engine._pools[256]):
        leaf.delete()
    advance(size)

  monkeypatch.setattr(engine, '_advance', second_round_fails)
  ear = queue.Queue()
  engine.complete([ask], [ear.put])
  assert heard(ear).finish is None
  while not isinstance(last := heard(ear), serving.Failure):
    assert last.finish is None
  assert 'sampling' in last.message
  assert complete(engine, [ask]) == [expected]
  engine.close()


def test_a_full_queue_takes_all_or_nothing(engine):
  until(lambda: idle(engine))
  ears = [queue.Queue() for _ in range(QUEUE + 1)]
  asks = [Ask((1, 2, 3), 2, seed=i) for i in range(QUEUE + 1)]
  with pytest.raises(serving.Full):
    engine.complete(asks, [ear.put for ear in ears])
  engine.complete(asks[1:], [ear.put for ear in ears[1:]])
  for ear in ears[1:]:
    join(ear)
  assert ears[0].empty()


def test_cancelled_rows_make_room_and_are_not_heard_again(engine, monkeypatch):
  cancelled = threading.Event()
  hold(engine, cancelled.is_set, monkeypatch)
  ears = [queue.Queue() for _ in range(QUEUE)]
  asks = [Ask((1, 2, 3), 300, temperature=0.0)] * QUEUE
  entries = engine.complete(asks, [ear.put for ear in ears])
  heard(ears[0])
  engine.cancel(entries)
  cancelled.set()
  # Whoever comes next finds a row, though those were to go on for long.
  complete(engine, [Ask((4, 5), 3)])
  until(lambda: idle(engine))
  assert all(piece.finish is None for ear in ears for piece in tuple(ear.queue))


def test_closing_tells_whoever_waits(tiny, one_device, monkeypatch):
  engine = make_engine(tiny, one_device)
  hold(engine, lambda: engine._closed, monkeypatch)
  ears = [queue.Queue() for _ in range(6)]
  asks = [Ask((1, 2, 3), 300, temperature=0.0)] * 6
  engine.complete(asks, [ear.put for ear in ears])
  heard(ears[0])
  engine.close()
  for ear in ears:
    assert 'shutting down' in tuple(ear.queue)[-1].message
  with pytest.raises(serving.Full):
    engine.complete(asks, [ear.put for ear in ears])


# -------------------------------------------------------- tokens to whole text


def small_bpe():
  """Byte-level pairs, some of which join halves of characters."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merges = [('h', 'e'), ('he', 'l'), ('Ġ', 'h'), ('ð', 'Ł'), ('ðŁ', 'ĳ')]
  vocab = {t: i for i, t in enumerate(letters + [a + b for a, b in merges])}
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges))
  bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  bpe.decoder = tokenizers.decoders.ByteLevel()
  bpe.add_special_tokens(['<|end|>'])
  return text.BPETokenizer(
    bpe, template=text.CHATML, eos_ids=(261,), pad_id=261
  )


@pytest.mark.parametrize('make', [text.ByteTokenizer, small_bpe])
def test_streamed_text_grows_to_the_decoded_text(make):
  tokenizer = make()
  rng = np.random.default_rng(0)
  sample = 'hello 👩‍🔬 naïve hé 天気\ufffd!'
  rows = [tokenizer.encode(sample), tokenizer.encode(sample)[:-3]]
  rows += [rng.integers(0, 262, n).tolist() for n in (1, 40, 200)]
  for row in rows:
    stream, said = streaming.TextStream(tokenizer.decode), ''
    for token in row:
      stream.push(token)
      said += stream.take(last=False)
      assert stream.sent == len(said) == len(stream)
    assert said + stream.take(last=True) == tokenizer.decode(row)


def test_half_a_character_is_held_back():
  stream = streaming.TextStream(text.ByteTokenizer().decode)
  said = []
  for byte in 'aé👩b'.encode():
    stream.push(byte)
    said.append(stream.take(last=False))
  assert said == ['a', '', 'é', '', '', '', '👩', 'b']


def test_what_may_become_a_stop_string_is_held_back():
  stream = streaming.TextStream(text.ByteTokenizer().decode, ('</s>', '\n\n'))
  said = []
  for byte in b'a<</q\n.<</s>b':
    if not stream.stopped:
      stream.push(byte)
      said.append(stream.take(last=False))
  assert said == ['a', '', '<', '', '</q', '', '\n.', '', '<', '', '', '']
  assert stream.stopped and stream.text == 'a<</q\n.<'


def test_the_earliest_stop_string_wins_wherever_pieces_are_cut():
  for sizes in ([1] * 9, [4, 5], [9], [3, 3, 3]):
    stream, said, data = (
      streaming.TextStream(text.ByteTokenizer().decode, ('cd', 'bcd', 'cde')),
      '',
      list(b'abcdefgh.'),
    )
    for size in sizes:
      for byte in data[:size]:
        if not stream.stopped:
          stream.push(byte)
      said += stream.take(last=False)
      data = data[size:]
    assert stream.stopped and said == stream.text == 'a'


# ----------------------------------------------------- the protocol, by client


def test_models(client):
  (model,) = client.models.list().data
  assert (model.id, model.object) == ('tiny', 'model')
  assert client.models.retrieve('tiny') == model
  with pytest.raises(openai.NotFoundError):
    client.models.retrieve('other')


CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {
    'role': 'user',
    'content': [{'type': 'text', 'text': 'A'}, {'type': 'text', 'text': 'b?'}],
  },
]


def test_a_chat_is_the_models_template_and_the_samplers_text(tiny, client):
  messages = [Message('system', 'Be brief.'), Message('user', 'Ab?')]
  prompt = tiny.tokenizer.encode_chat(messages)
  tokens, logprobs = likely(tiny, prompt, 12)
  found = client.chat.completions.create(
    model='tiny', messages=CHAT, max_completion_tokens=12, temperature=0,
    logprobs=True, top_logprobs=2, user='someone', tools=[], stop=None,
    response_format={'type': 'text'},
  )  # fmt: skip
  (choice,) = found.choices
  assert choice.message.role == 'assistant'
  assert choice.message.content == tiny.tokenizer.decode(tokens)
  assert choice.finish_reason == ('stop' if tokens[-1] == 258 else 'length')
  said = choice.logprobs.content
  np.testing.assert_allclose([t.logprob for t in said], logprobs, atol=1e-4)
  assert [t.top_logprobs[0].logprob for t in said] == [t.logprob for t in said]
  assert all(
    t.token.startswith('token_id:') if t.bytes is None
    else bytes(t.bytes).decode() == t.token
    for t in said
  )  # fmt: skip
  usage = found.usage
  assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
    len(prompt), len(tokens), len(prompt) + len(tokens),
  )  # fmt: skip


@pytest.mark.parametrize('said', ['x', 'xx', 'xyz'])
def test_a_chat_without_a_limit_goes_on_to_eos_or_the_context(
  tiny, client, said
):
  prompt = tiny.tokenizer.encode_chat([Message('user', said)])
  expected, _ = likely(tiny, prompt, CONTEXT - len(prompt))
  found = client.chat.completions.create(
    model='tiny', temperature=0, messages=[{'role': 'user', 'content': said}]
  )
  assert found.usage.completion_tokens == len(expected)
  ended = expected[-1] in tiny.tokenizer.eos_ids
  assert found.choices[0].finish_reason == ('stop' if ended else 'length')
  assert found.choices[0].message.content == tiny.tokenizer.decode(expected)


@pytest.mark.parametrize('n', [1, 3])
def test_a_streamed_chat_is_the_whole_one(client, n):
  ask = functools.partial(
    client.chat.completions.create, model='tiny', messages=CHAT, n=n, seed=5,
    max_tokens=10, logprobs=True,
  )  # fmt: skip
  whole = ask()
  texts, tokens, ends, roles = [''] * n, [[] for _ in range(n)], {}, [0] * n
  *chunks, last = ask(stream=True, stream_options={'include_usage': True})
  for chunk in chunks:
    assert chunk.id == last.id and chunk.object == 'chat.completion.chunk'
    (choice,) = chunk.choices
    assert choice.index not in ends
    roles[choice.index] += choice.delta.role == 'assistant'
    texts[choice.index] += choice.delta.content
    tokens[choice.index] += choice.logprobs.content
    if choice.finish_reason:
      ends[choice.index] = choice.finish_reason
  assert len(chunks) > n and roles == [1] * n
  assert last.choices == [] and last.usage == whole.usage
  assert len({choice.message.content for choice in whole.choices}) == n
  for i, choice in enumerate(whole.choices):
    assert choice.index == i
    assert choice.message.content == texts[i]
    assert choice.logprobs.content == tokens[i]
    assert choice.finish_reason == ends[i]


def test_completions_take_every_kind_of_prompt(tiny, client):
  prompts = [random_prompt(7, 5), random_prompt(9, 5)]
  prompts = [[i % 128 for i in prompt] for prompt in prompts]
  texts = [tiny.tokenizer.decode(prompt) for prompt in prompts]
  ask = lambda prompt: client.completions.create(
    model='tiny', prompt=prompt, temperature=0, max_tokens=6
  )
  expected = [tiny.tokenizer.decode(likely(tiny, p, 6)[0]) for p in prompts]
  for kind in (texts, prompts):
    assert [ask(one).choices[0].text for one in kind] == expected
    both = ask(list(kind))
    assert [choice.text for choice in both.choices] == expected
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.usage.prompt_tokens == 16


@pytest.mark.parametrize('limit', [0, 1, 4])
@pytest.mark.parametrize('stream', [False, True])
def test_echo_tells_the_prompts_log_probabilities(
  tiny, engine, client, limit, stream
):
  """As lm-eval asks (limit 1), for scores alone (0), and going on."""
  prompts = [list(b'ab c'), [*'é'.encode(), 257, 50]]
  answer = client.completions.create(
    model='tiny', prompt=prompts, temperature=0, max_tokens=limit, logprobs=1,
    echo=True, n=2, stream=stream,
  )  # fmt: skip
  choices = [types.SimpleNamespace(text='', parts=[]) for _ in range(4)]
  for part in answer if stream else [answer]:
    for choice in part.choices:
      mine = choices[choice.index]
      mine.text += choice.text
      mine.parts.append(choice.logprobs)
      mine.finish_reason = choice.finish_reason
  for i, choice in enumerate(choices):
    prompt = prompts[i // 2]
    gather = lambda name, choice=choice: sum(
      (getattr(part, name) for part in choice.parts), []
    )
    tokens, logprobs = gather('tokens'), gather('token_logprobs')
    (scored,) = score(engine, [tuple(prompt)], 1)
    wrote, said = likely(tiny, prompt, limit) if limit else ([], [])
    assert choice.text == tiny.tokenizer.decode(prompt + wrote)
    assert len(tokens) == len(prompt) + len(wrote)
    assert logprobs[0] is None and gather('top_logprobs')[0] is None
    expected = [t.logprob for t in scored.tokens[1:]] + said
    np.testing.assert_allclose(logprobs[1:], expected, atol=1e-4)
    # By which a client decides whether a continuation is the greedy one.
    for own, top in zip(logprobs[1:], gather('top_logprobs')[1:], strict=True):
      assert own in top.values() and len(top) <= 2
    greedy = [own == max(top.values()) for own, top in zip(
      logprobs[len(prompt):], gather('top_logprobs')[len(prompt):], strict=True
    )]  # fmt: skip
    assert greedy == [True] * len(wrote)
    assert choice.finish_reason == ('stop' if wrote[-1:] == [258] else 'length')
    offsets = gather('text_offset')
    assert offsets == sorted(offsets) and offsets[0] == 0
    for token, start in zip(tokens[: len(prompt)], offsets, strict=False):
      if not token.startswith('token_id:'):
        assert choice.text[start:].startswith(token)
  assert tokens[-len(wrote) - 2] == 'token_id:257'


def test_echo_without_log_probabilities_is_the_text_before(client):
  ask = functools.partial(
    client.completions.create, model='tiny', prompt='Hé ', max_tokens=4, seed=1
  )
  assert ask(echo=True).choices[0].text == 'Hé ' + ask().choices[0].text


def test_a_stop_string_ends_the_text_before_it(client):
  """Of every length, wherever the pieces of three tokens are cut."""
  ask = functools.partial(
    client.completions.create, model='tiny', prompt='x', max_tokens=30, seed=3,
    logprobs=0,
  )  # fmt: skip
  whole = ask().choices[0]
  text, offsets = whole.text, whole.logprobs.text_offset
  for start in range(4, 13):
    for size in (1, 2, 5):
      stop = text[start : start + size]
      at = text.index(stop)
      found = ask(stop=[stop, 'not there'])
      (choice,) = found.choices
      assert choice.text == text[:at]
      assert choice.finish_reason == 'stop'
      assert choice.logprobs.text_offset == [o for o in offsets if o < at]
      # Up to the token with which the stop string is there.
      assert found.usage.completion_tokens <= len(
        [o for o in offsets if o < at + size + 1]
      )
      streamed = ''.join(
        part.choices[0].text for part in ask(stop=stop, stream=True)
      )
      assert streamed == text[:at]


def test_eight_clients_at_once_hear_what_they_would_alone(client):
  def ask(i):
    messages = [{'role': 'user', 'content': 'word ' * i}]
    if i % 2:
      found = client.chat.completions.create(
        model='tiny', messages=messages, seed=i, max_tokens=5 + i
      )
      return found.choices[0].message.content
    found = client.completions.create(
      model='tiny', prompt='word ' * (i + 1), max_tokens=5 + i, seed=i,
      temperature=0.25 * i, top_p=0.9, stream=i > 3,
    )  # fmt: skip
    parts = found if i > 3 else [found]
    return ''.join(part.choices[0].text for part in parts)

  alone = [ask(i) for i in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    for _ in range(2):
      assert list(threads.map(ask, range(8))) == alone


def test_without_a_seed_every_request_has_its_own(client):
  ask = lambda: client.completions.create(
    model='tiny', prompt='x', max_tokens=10
  )
  assert len({ask().choices[0].text for _ in range(4)}) == 4
  # The protocol's default length, too.
  found = client.completions.create(model='tiny', prompt='x', temperature=0)
  assert found.usage.completion_tokens <= 16


def test_a_context_that_is_full_to_the_last_token(client):
  prompt = [1] * (CONTEXT - 3)
  found = client.completions.create(model='tiny', prompt=prompt, max_tokens=3)
  assert found.usage.total_tokens == CONTEXT
  with pytest.raises(openai.BadRequestError) as e:
    client.completions.create(model='tiny', prompt=prompt, max_tokens=4)
  assert e.value.code == 'context_length_exceeded'
  assert f'{CONTEXT - 3} + 4 tokens' in str(e.value)


# ------------------------------------------------------------ what gets errors

ASK = {'model': 'tiny', 'prompt': 'x'}
TALK = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'x'}]}

WRONG = [
  (ASK, {'model': None}, 'model', 'is missing'),
  (ASK, {'model': 3}, 'model', 'a number, expected a string'),
  (ASK, {'prompt': None}, 'prompt', 'is missing'),
  (ASK, {'prompt': ''}, 'prompt', 'is empty'),
  (ASK, {'prompt': []}, 'prompt', 'no text'),
  (ASK, {'prompt': [[]]}, 'prompt', 'a list, expected a string'),
  (ASK, {'prompt': {'a': 1}}, 'prompt', 'no text'),
  (ASK, {'prompt': [1, True]}, 'prompt', 'a number, expected a string'),
  (ASK, {'prompt': ['a', 2]}, 'prompt', 'a number, expected a string'),
  (ASK, {'prompt': [264]}, 'prompt', 'outside of 0 to 263'),
  (ASK, {'prompt': [-1]}, 'prompt', 'outside of 0 to 263'),
  (ASK, {'prompt': [10**400]}, 'prompt', 'outside of 0 to 263'),
  (ASK, {'prompt': '\ud800'}, 'prompt', 'surrogate'),
  (ASK, {'prompt': 'x' * 400}, 'prompt', '400 + 16 tokens'),
  (ASK, {'prompt': 'x' * 30_000}, 'prompt', '30000 characters'),
  (ASK, {'prompt': ['x'] * 7, 'n': 2}, 'n', 'over the 12'),
  (TALK, {'n': 13}, 'n', 'over the 12'),
  (ASK, {'max_tokens': -1}, 'max_tokens', 'is -1'),
  (ASK, {'max_tokens': 0}, 'max_tokens', 'without echo'),
  (ASK, {'max_tokens': 1.5}, 'max_tokens', 'whole number'),
  (ASK, {'max_tokens': '5'}, 'max_tokens', 'a string'),
  (ASK, {'temperature': 2.5}, 'temperature', 'expected 0 to 2'),
  (ASK, {'temperature': True}, 'temperature', 'a boolean'),
  (ASK, {'top_p': 0}, 'top_p', 'is 0'),
  (ASK, {'top_p': 1.1}, 'top_p', 'expected 0 to 1'),
  (ASK, {'seed': 2**63}, 'seed', 'expected'),
  (ASK, {'seed': 'x'}, 'seed', 'a string'),
  (ASK, {'n': 0}, 'n', 'expected 1'),
  (ASK, {'logprobs': True}, 'logprobs', 'a boolean'),
  (ASK, {'logprobs': 21}, 'logprobs', 'expected 0 to 20'),
  (ASK, {'stop': 3}, 'stop', 'no string'),
  (ASK, {'stop': ['a', '']}, 'stop', 'empty'),
  (ASK, {'stop': ['a'] * 65}, 'stop', '64'),
  (ASK, {'stream': 'yes'}, 'stream', 'true or false'),
  (ASK, {'stream_options': 3}, 'stream_options', 'an object'),
  (ASK, {'suffix': 'a'}, 'suffix', 'not supported'),
  (ASK, {'best_of': 2}, 'best_of', 'not supported'),
  (ASK, {'logit_bias': {'1': 5}}, 'logit_bias', 'not supported'),
  (ASK, {'frequency_penalty': 0.1}, 'frequency_penalty', 'not supported'),
  (ASK, {'no_such_field': 1}, 'no_such_field', 'not supported'),
  (ASK, {'\ud800': 1}, '\ud800', 'not supported'),
  (TALK, {'prompt': 'x'}, 'prompt', 'not supported'),
  (TALK, {'tools': [{'type': 'function'}]}, 'tools', 'not supported'),
  (TALK, {'tool_choice': 'required'}, 'tool_choice', 'not supported'),
  (TALK, {'response_format': {'type': 'json_object'}}, 'response_format', ''),
  (TALK, {'top_logprobs': 2}, 'top_logprobs', 'without logprobs'),
  (TALK, {'max_tokens': 2, 'max_completion_tokens': 3}, 'max_tokens', 'differ'),
  (TALK, {'max_tokens': 0}, 'max_tokens', 'expected 1'),
  (TALK, {'messages': None}, 'messages', 'is missing'),
  (TALK, {'messages': []}, 'messages', 'no list'),
  (TALK, {'messages': 'x'}, 'messages', 'no list'),
  (TALK, {'messages': ['x']}, 'messages[0]', 'an object'),
]  # fmt: skip
MESSAGES = [
  ({'role': 'tool', 'content': 'x'}, 'messages[0].role', 'there are no tools'),
  ({'content': 'x'}, 'role', 'is missing'),
  ({'role': 'user'}, 'content', 'is missing'),
  ({'role': 'user', 'content': 3}, 'content', 'a number'),
  ({'role': 'user', 'content': '\udfff'}, 'content', 'surrogate'),
  ({'role': 'user', 'content': [{'type': 'image'}]}, 'content', 'not of type'),
  ({'role': 'user', 'content': [{'type': 'text'}]}, 'content', 'expected a s'),
  ({'role': 'user', 'content': 'x', 'tool_calls': [1]}, 'tool_calls', 'not'),
]  # fmt: skip
WRONG += [(TALK, {'messages': [m]}, param, why) for m, param, why in MESSAGES]


@pytest.mark.parametrize('start, change, param, why', WRONG)
def test_what_is_wrong_is_named(address, start, change, param, why):
  path = '/v1/completions' if 'prompt' in start else '/v1/chat/completions'
  body = json.dumps(start | change).encode()
  status, error = refused(post(address, path, body))
  assert (status, error['type']) == (400, 'invalid_request_error')
  assert error['param'] == param
  assert why in error['message']


def test_neutral_and_harmless_fields_are_no_mistake():
  more = {
    'user': 'a', 'metadata': {'a': 'b'}, 'store': True, 'tools': [],
    'tool_choice': 'none', 'logit_bias': {}, 'suffix': '', 'best_of': 1,
    'frequency_penalty': 0.0, 'presence_penalty': 0, 'no_such_field': None,
    'response_format': {'type': 'text'}, 'stream_options': {},
  }  # fmt: skip
  assert wire.read_completion(ASK | more) == wire.read_completion(ASK)
  assert wire.read_chat(TALK | more) == wire.read_chat(TALK)
  with_both = {'max_tokens': 3, 'max_completion_tokens': 3}
  assert wire.read_chat(TALK | with_both).max_tokens == 3
  developer = {'role': 'developer', 'content': 'x', 'name': 'y'}
  (message,) = wire.read_chat(TALK | {'messages': [developer]}).chat
  assert message == Message('system', 'x')


def test_of_tokens_with_one_name_the_likelier_is_told():
  """Halves of characters have none; others may be called the same."""
  request = wire.read_completion(ASK | {'logprobs': 2})
  answer = wire.Answer(request, 'x', 0, {1: 'a', 2: 'a', 3: None}.get, 1)
  token = serving.Token(2, -3.0, ((1, -1.0), (3, -2.0)), 0)
  (choice,) = answer.whole([[serving.Piece('a', (token,), 1, 'stop')]])[
    'choices'
  ]
  assert choice['logprobs']['top_logprobs'] == [{'a': -1.0, 'token_id:3': -2.0}]


@pytest.mark.parametrize(
  'body',
  [
    b'', b'{', b'[]', b'"x"', b'{"model": "tiny", "prompt": NaN}', b'\xff\xfe',
    b'{"a": ' + b'[' * 20_000, b'{"n": ' + b'1' * 10_000 + b'}', b'\x00' * 100,
  ],
)  # fmt: skip
def test_a_body_that_is_no_json_object(address, body):
  status, error = refused(post(address, '/v1/completions', body))
  assert status == 400 and error['message'].startswith('the body is not')


@pytest.mark.parametrize(
  'method, path, status',
  [
    ('GET', '/', 404), ('POST', '/v1/embeddings', 404),
    ('GET', '/v1/completions', 405), ('POST', '/v1/models', 405),
    ('DELETE', '/v1/models/tiny', 405), ('GET', '/v1/models/other', 404),
  ],
)  # fmt: skip
def test_paths_and_methods_that_there_are_not(address, method, path, status):
  found, error = refused(send(address, request(method, path, b'{}')))
  assert found == status and error['message']


@pytest.mark.parametrize(
  'template',
  ["{{ raise_exception('no such role') }}", '{{ messages[9].content.x }}', ''],
)
def test_a_conversation_that_the_template_refuses(tiny, engine, template):
  model = dataclasses.replace(tiny, tokenizer=text.ByteTokenizer(template))
  service = Service(engine, model, 'tiny')
  with pytest.raises(wire.Problem) as e:
    asyncio.run(service.answer(wire.read_chat(TALK), None))
  assert (e.value.status, e.value.param) == (400, 'messages')


def test_errors_of_the_official_client(client):
  with pytest.raises(openai.NotFoundError) as e:
    client.completions.create(model='gpt', prompt='x')
  assert e.value.code == 'model_not_found' and "'gpt'" in str(e.value)
  with pytest.raises(openai.BadRequestError) as e:
    client.chat.completions.create(
      model='tiny', messages=CHAT, stream=True, stop=['']
    )
  assert e.value.param == 'stop'


def test_a_full_queue_is_a_503_and_passes(engine, client):
  ask = functools.partial(client.completions.create, model='tiny', prompt='x')
  until(lambda: idle(engine))
  with ask(n=QUEUE, max_tokens=200, temperature=0, stream=True) as long:
    next(iter(long))
    with pytest.raises(openai.InternalServerError) as e:
      ask(n=QUEUE, max_tokens=1)
    assert (e.value.status_code, e.value.code) == (503, 'overloaded')
    assert e.value.response.headers['retry-after'] == '1'
  until(lambda: idle(engine))
  assert len(ask(n=QUEUE, max_tokens=1).choices) == QUEUE


# ------------------------------------------------------------ what sockets do


def request(method, path, body, *headers, length=None):
  length = len(body) if length is None else length
  lines = [
    f'{method} {path} HTTP/1.1', 'Host: x', f'Content-Length: {length}',
    'Connection: close', *headers, '', '',
  ]  # fmt: skip
  return '\r\n'.join(lines).encode() + body


def dial(address):
  return socket.create_connection(address, timeout=PATIENCE)


def send(address, data):
  """All that comes back until the server closes."""
  with dial(address) as s:
    s.sendall(data)
    return b''.join(iter(lambda: s.recv(65536), b''))


def post(address, path, body, **kwargs):
  return send(address, request('POST', path, body, **kwargs))


def refused(answer):
  """Status and error of an answer, in the protocol's shape."""
  head, _, body = answer.partition(b'\r\n\r\n')
  error = json.loads(body)['error']
  assert set(error) == {'message', 'type', 'param', 'code'}
  return int(head.split()[1]), error


def fine(address):
  """The server answers, still."""
  body = json.dumps(ASK | {'max_tokens': 2}).encode()
  return b' 200 ' in post(address, '/v1/completions', body)[:15]


def test_a_body_over_the_limit_is_a_413(address):
  body = json.dumps(ASK | {'user': 'x' * 60_000}).encode()
  status, error = refused(post(address, '/v1/completions', body))
  assert status == 413 and 'over 50000 bytes' in error['message']
  assert fine(address)


def test_a_chunked_body_over_the_limit_is_a_413(address):
  lines = [
    'POST /v1/completions HTTP/1.1', 'Host: x', 'Transfer-Encoding: chunked',
    '', '',
  ]  # fmt: skip
  data = '\r\n'.join(lines).encode()
  data += b''.join(b'2710\r\n' + b'x' * 10_000 + b'\r\n' for _ in range(6))
  status, _ = refused(send(address, data + b'0\r\n\r\n'))
  assert status == 413
  assert fine(address)


def test_a_body_without_end_is_cut_off(address):
  """The client sends for as long as it is let."""
  lines = [
    'POST /v1/completions HTTP/1.1', 'Host: x', 'Transfer-Encoding: chunked',
    '', '',
  ]  # fmt: skip
  with dial(address) as s:
    s.sendall('\r\n'.join(lines).encode())
    sent = 0
    with pytest.raises(OSError):
      while True:
        s.sendall(b'2710\r\n' + b'x' * 10_000 + b'\r\n')
        sent += 10_000
  # Four times the limit, and what the system holds on the way.
  assert sent < 32_000_000
  assert fine(address)


def test_a_body_cut_off_half_way_harms_nobody(address, engine):
  whole = json.dumps(ASK).encode()
  for cut in (0, 5, len(whole) - 1):
    with dial(address) as s:
      s.sendall(
        request('POST', '/v1/completions', whole[:cut], length=len(whole))
      )
  assert fine(address)
  until(lambda: idle(engine))


def test_a_sender_who_is_too_slow_is_a_408(address):
  with dial(address) as s:
    s.sendall(request('POST', '/v1/completions', b'{"mod', length=1000))
    assert fine(address)  # Meanwhile.
    status, error = refused(b''.join(iter(lambda: s.recv(65536), b'')))
  assert status == 408 and 'within 3 s' in error['message']


def test_no_http_at_all(address):
  for data in (b'\x16\x03\x01\x02\x00', b'hello\r\n\r\n', b'GET\r\n\r\n'):
    assert b' 400 ' in send(address, data + b'\r\n\r\n')[:13]
  assert fine(address)


@pytest.mark.parametrize('stream', [True, False])
def test_who_hangs_up_frees_the_row(address, engine, stream, monkeypatch):
  until(lambda: idle(engine))
  rows = []

  def somebody_left():
    rows.extend(engine._active())
    return any(row.gone for row in rows)

  hold(engine, somebody_left, monkeypatch)
  long = ASK | {'max_tokens': 300, 'temperature': 0, 'stream': stream, 'n': 9}
  with dial(address) as s:
    s.sendall(request('POST', '/v1/completions', json.dumps(long).encode()))
    until(engine._active)
    said = b''
    while stream and b'data: ' not in said:
      said += s.recv(65536)
    before = engine._active()
  until(lambda: idle(engine))
  # They were not written to their end.
  assert before and all(row.count < 300 for row in before)
  assert fine(address)


def test_a_stream_that_fails_half_way_says_so(make_tiny, one_device):
  """Its headers are out: the error is an event, and no end is pretended."""
  model = make_tiny(tied=False)
  (wrote, _) = likely(model, [1, 2, 3], 12)
  rare = next(i for i in wrote if i not in wrote[: 2 * STEPS])
  model.params['embed'][rare] = np.nan
  service = Service(make_engine(model, one_device), model, 'tiny')
  ask = {'model': 'tiny', 'prompt': [1, 2, 3], 'temperature': 0}
  ask |= {'max_tokens': 20, 'stream': True}
  with running(serve.make_app(service)) as address:
    answer = post(address, '/v1/completions', json.dumps(ask).encode())
    events = [e for e in answer.split(b'data: ')[1:]]
    assert b'"text"' in events[0] and b'[DONE]' not in answer
    assert b'"type": "server_error"' in events[-1]
    with make_client(address) as client:
      with pytest.raises(openai.APIError, match='its log says why'):
        list(client.completions.create(**ask))
      with pytest.raises(openai.InternalServerError):
        client.completions.create(**ask | {'stream': False})
      del ask['stream']
      found = client.completions.create(**ask | {'max_tokens': STEPS})
      assert found.usage.completion_tokens == STEPS


# ---------------------------------------------------------- keys and programs


async def call(app, path, *headers):
  """Status of a GET, without a server: its end would close the engine."""
  found = []

  async def send(message):
    found.append(message)

  async def receive():
    return {'type': 'http.request'}

  scope = {
    'type': 'http', 'method': 'GET', 'path': path, 'headers': headers,
    'query_string': b'', 'server': ('x', 1), 'scheme': 'http',
  }  # fmt: skip
  await app(scope, receive, send)
  return found[0]['status']


@pytest.mark.parametrize(
  'header, status',
  [
    (b'Bearer sk-right', 200), (b'bearer sk-right', 200),
    (b'Bearer sk-wrong', 401), (b'Bearer ', 401), (b'', 401),
    (b'Basic sk-right', 401), (b'sk-right', 401), (b'Bearer sk-right\xff', 401),
  ],
)  # fmt: skip
def test_only_who_knows_the_key_is_served(service, header, status):
  app = serve.make_app(service, key='sk-right')
  for path in ('/v1/models', '/v1/models/tiny'):
    found = asyncio.run(call(app, path, (b'authorization', header)))
    assert found == status
  assert asyncio.run(call(app, '/v1/models')) == 401


def command(*args):
  return [sys.executable, '-m', 'alignment_rl.serve', *args]


def test_the_program_serves_and_ends_what_it_has_begun():
  """Any port, a key, and an interrupt while a reply is being written."""
  env = os.environ | {serve.KEY_VARIABLE: 'sk-x', 'JAX_NUM_CPU_DEVICES': '1'}
  process = subprocess.Popen(
    command('--checkpoint=random:tiny', '--port=0', '--context=400'),
    cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    text=True,
  )  # fmt: skip
  try:
    line = process.stdout.readline()
    assert line.startswith('serving tiny at http://127.0.0.1:'), line
    address = ('127.0.0.1', int(line.rpartition(':')[2].partition('/')[0]))
    with make_client(address, 'wrong') as client:
      with pytest.raises(openai.AuthenticationError):
        client.models.list()
    with make_client(address, 'sk-x') as client:
      stream = client.completions.create(
        model='tiny', prompt='x', max_tokens=300, temperature=0, stream=True
      )
      finish = next(iter(stream)).choices[0].finish_reason
      process.send_signal(signal.SIGINT)
      for part in stream:
        finish = part.choices[0].finish_reason
    assert finish in ('length', 'stop')
    more, said = process.communicate(timeout=PATIENCE)
    assert more == ''  # To stdout goes the address alone.
    assert process.returncode == 0, said
    assert 'compiling' in said and 'Traceback' not in said
  finally:
    process.kill()
    process.communicate()


def test_an_address_that_cannot_be_had_is_a_mistake_of_the_user():
  with socket.create_server(('127.0.0.1', 0)) as taken:
    port = taken.getsockname()[1]
    for wrong, why in (
      (port, f'cannot listen at --host=127.0.0.1 --port={port}'),
      (99999, '--port is 99999, expected 0 to 65535'),
    ):
      done = subprocess.run(
        command('--checkpoint=random:tiny', f'--port={wrong}'), cwd=ROOT,
        capture_output=True, text=True,
      )  # fmt: skip
      assert done.returncode == 2
      assert done.stderr.startswith(f'error: {why}')
      assert done.stderr.count('\n') == 1
