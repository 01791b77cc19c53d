"""The language-model head over a mesh: chunks of each device's own rows."""

import re

import jax
import numpy as np
import pytest

from alignment_rl import forward, learner, sharding

B, G, C, V = 8, 4, 64, 1024
SPLIT = {'data': 2, 'fsdp': 2, 'tensor': 2}
TENSOR = [[0, 1], [2, 3], [4, 5], [6, 7]]  # the groups of that axis
OWN = B * G * C // 4  # tokens of one device's rows
CHUNK = 64

COLLECTIVE = re.compile(
  r'= \(?\w+\[([\d,]*)\].*? (all-gather|all-reduce|all-to-all|reduce-scatter|'
  r'collective-permute)(?:-start)?\('
)


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'untied'])
def model(request, make_tiny):
  return make_tiny(vocab=V, tied=request.param)


@pytest.fixture(scope='module')
def args(model):
  """Parameters, states [B, G, C, D] and tokens [B, G, C], on the host."""
  rng = np.random.default_rng(0)
  hidden = rng.normal(0, 1, (B, G, C, model.config.embed)).astype(np.float32)
  return model.params, hidden, rng.integers(0, V, (B, G, C), dtype=np.int32)


def compile_(monkeypatch, model, args, chunk, split=True):
  """The gradient of log-probabilities, with them and entropies, compiled.

  Returns:
    The program and its arguments.
  """
  monkeypatch.setattr(forward, '_LOGITS_CHUNK', chunk)
  decoder, out = model.decoder, None
  if split:
    mesh = sharding.make_mesh(SPLIT)
    decoder, rows = decoder.clone(mesh=mesh), sharding.rows(mesh)
    places = learner.param_shardings(decoder, mesh), rows, rows
    args = sharding.to_global(args, places)
    out = places[:2], rows

  def loss(params, hidden, tokens):
    logprobs, entropy = forward.token_logprobs(
      decoder, params, hidden, tokens, 0.7
    )
    return logprobs.sum(), (logprobs, entropy)

  program = jax.jit(jax.grad(loss, (0, 1), has_aux=True), out_shardings=out)
  return program.lower(*args).compile(), args


def collectives(program):
  """Of each: (kind, shape, whether it is in a loop, groups of devices)."""
  found = []
  for line in program.as_text().splitlines():
    if match := COLLECTIVE.search(line):
      shape = [int(n) for n in match[1].split(',') if n]
      found.append((match[2], shape, '/while/body/' in line, groups(line)))
  return found


def groups(line):
  """Such as {{0,1},{2,3}}, [2,2]<=[4] or [2,2]<=[2,2]T(1,0)."""
  if match := re.search(r'replica_groups=\{\{([\d,{}]*)\}\}', line):
    return [[int(n) for n in g.split(',')] for g in match[1].split('},{')]
  match = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', line
  )
  shape, source, order = (
    x and [int(n) for n in x.split(',')] for x in match.groups()
  )
  devices = np.arange(np.prod(source)).reshape(source)
  return devices.transpose(order).reshape(shape).tolist()


def test_groups_are_read_in_each_notation():
  assert groups('replica_groups={{0,2},{1,3}}, a') == [[0, 2], [1, 3]]
  assert groups('replica_groups=[2,2]<=[4], a') == [[0, 1], [2, 3]]
  assert groups('replica_groups=[2,2]<=[2,2]T(1,0)') == [[0, 2], [1, 3]]


def test_chunks_talk_to_no_other_rows(monkeypatch, model, args):
  """A loop reduces over the vocabulary's parts alone; the head comes once."""
  found = collectives(compile_(monkeypatch, model, args, CHUNK)[0])
  D = model.config.embed
  of_loop = [f for f in found if f[2]]
  assert len(of_loop) > 3
  for kind, shape, _, among in of_loop:
    assert kind == 'all-reduce' and sorted(map(sorted, among)) == TENSOR
    assert shape in ([CHUNK], [CHUNK, D])  # of logits, of the states' gradient
  once = [f for f in found if not f[2]]
  assert {kind for kind, *_ in once} == {'all-gather', 'all-reduce'}
  for _, shape, *_ in once:
    assert sorted(shape) == [D, V // 2]


def test_chunks_move_what_the_whole_moves(monkeypatch, model, args):
  def moved(chunk):
    total = {}
    for kind, shape, inside, among in collectives(
      compile_(monkeypatch, model, args, chunk)[0]
    ):
      key = kind, str(sorted(map(sorted, among)))
      times = OWN // chunk if inside else 1
      total[key] = total.get(key, 0) + times * int(np.prod(shape))
    return total

  part, whole = moved(CHUNK), moved(OWN)
  assert part.keys() == whole.keys()
  more = {key: part[key] - whole[key] for key in part}
  # A token's maximum and sum are made again with its logits.
  assert 0 <= more.pop(('all-reduce', str(TENSOR))) <= 2 * OWN
  assert set(more.values()) == {0}


def test_no_more_logits_exist_than_those_of_a_chunk(monkeypatch, model, args):
  def largest(program):
    """Numbers of an array that has an axis of a device's vocabulary."""
    shapes = [
      [int(n) for n in shape.split(',')]
      for shape in re.findall(r'\b\w+\[([\d,]+)\]', program.as_text())
    ]
    assert not any(V in s for s in shapes)  # It stays split.
    return max(int(np.prod(s)) for s in shapes if V // 2 in s)

  part, whole = (
    compile_(monkeypatch, model, args, chunk)[0] for chunk in (CHUNK, OWN)
  )
  assert largest(part) == CHUNK * V // 2
  assert largest(whole) == OWN * V // 2
  taken = [p.memory_analysis().temp_size_in_bytes for p in (part, whole)]
  assert taken[1] - taken[0] > 4 * (OWN - 2 * CHUNK) * V // 2


def test_one_device_and_eight_say_the_same(monkeypatch, model, args):
  expected, found = (
    program(*placed)
    for program, placed in (
      compile_(monkeypatch, model, args, chunk, split)
      for chunk, split in ((B * G * C, False), (CHUNK, True))
    )
  )
  for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())
