"""Published folders: what transformers says of small ones, and how they load.

tests/families holds models that transformers wrote and what it said of them;
tests/agreement/test_transformers.py made them, and compares live.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import tokenizers

from alignment_rl import (
  checkpoint,
  config,
  export,
  huggingface,
  learner,
  rollout,
  sharding,
  text,
)
from alignment_rl.errors import UserError
from alignment_rl.types import Message

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / 'tests' / 'families'
# Folder -> family.
PUBLISHED = {
  'llama': 'llama', 'llama3': 'llama', 'qwen2': 'qwen',
  'qwen2_windows': 'qwen', 'qwen3': 'qwen', 'gemma2': 'gemma',
  'gemma3': 'gemma',
}  # fmt: skip


def load(folder, family='llama'):
  return checkpoint.load_model(str(folder), family=family, dtype='float32')


# ---------------------------------------------------- against what others said


def test_every_published_folder_is_compared():
  found = {p.parent.name for p in FOLDER.glob('*/config.json')}
  assert found == set(PUBLISHED)


@pytest.fixture(scope='module', params=PUBLISHED)
def published(request):
  """A model and what transformers said of it."""
  with np.load(FOLDER / request.param / 'answers.npz') as answers:
    return load(FOLDER / request.param, PUBLISHED[request.param]), dict(answers)


def test_logits_are_those_of_transformers(published):
  model, said = published
  tokens = said['tokens']

  def forward(params):
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.decoder.apply(
      {'params': params}, tokens[:, None], positions[:, None]
    )
    return model.decoder.apply({'params': params}, hidden, method='logits')

  found = jax.jit(forward)(model.params)[:, 0]
  np.testing.assert_allclose(found, said['logits'], atol=1e-4)


def test_greedy_tokens_are_those_of_transformers(published, one_device):
  model, said = published
  sampler = rollout.Sampler(
    model.decoder, one_device, group=1, length=said['greedy'].shape[1],
    eos_ids=(-1,), temperature=0,
  )  # fmt: skip
  rolled = sampler(
    model.params, said['tokens'], said['lengths'], np.arange(2),
    jax.random.key(0),
  )  # fmt: skip
  np.testing.assert_array_equal(rolled.completions[:, 0], said['greedy'])


@pytest.mark.parametrize(
  'folder, changes, found',
  [
    ('llama3', {'rope_parameters': {'rope_type': 'yarn'}}, "type 'yarn'"),
    ('llama', {'attention_bias': True}, 'attention_bias=True'),
    ('qwen3', {'hidden_act': 'gelu'}, "hidden_act='gelu', expected 'silu'"),
    ('gemma3', {'use_bidirectional_attention': True}, 'bidirectional'),
    (
      'gemma3',
      {
        'rope_parameters': {
          'rope_type': 'linear',
          'factor': 2.0,
          'rope_theta': 1e4,
        }
      },
      r'layers with a window .*factor=2\.0',
    ),
  ],
)
def test_a_model_that_the_decoder_is_not_is_refused(
  folder, changes, found, tmp_path
):
  fields = json.loads((FOLDER / folder / 'config.json').read_text())
  (tmp_path / 'config.json').write_text(json.dumps(fields | changes))
  text.ByteTokenizer().save(tmp_path)
  with pytest.raises(UserError, match=found):
    load(tmp_path, PUBLISHED[folder])


@pytest.mark.parametrize('folder', ['llama3', 'gemma3'])
def test_both_ways_of_writing_rope_are_read(folder):
  family = config.load('models', PUBLISHED[folder])
  newer = json.loads((FOLDER / folder / 'config.json').read_text())
  sizes = family.config_from_hf(newer)
  older = family.config_to_hf(sizes)
  assert 'rope_parameters' in newer and 'rope_parameters' not in older
  assert family.config_from_hf(older) == sizes
  assert sizes.rope_scaling.factor == 8.0


@pytest.mark.parametrize(
  'prefix', ['language_model.model', 'model.language_model']
)
def test_of_a_model_that_reads_images_the_text_part_is_read(prefix, tmp_path):
  """As the released Gemma 3 of 4B and more; its other tensors are left."""
  expected = load(FOLDER / 'gemma3', 'gemma')
  fields = json.loads((FOLDER / 'gemma3' / 'config.json').read_text())
  vision = {'vision_tower.a.weight': np.zeros(3, np.float32)}
  _, tensors = weights(FOLDER / 'gemma3')
  safetensors.numpy.save_file(
    {n.replace('model', prefix, 1): t for n, t in tensors.items()} | vision,
    tmp_path / 'model.safetensors',
  )
  text.ByteTokenizer().save(tmp_path)
  (tmp_path / 'config.json').write_text(
    json.dumps({'model_type': 'gemma3', 'text_config': fields})
  )
  found = load(tmp_path, 'gemma')
  assert found.config == expected.config
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_what_released_text_configs_leave_out_is_known():
  """The text part of the released 4B's config.json, which says so much."""
  gemma = config.load('models', 'gemma')
  said = {
    'hidden_size': 2560, 'intermediate_size': 10240, 'num_hidden_layers': 34,
    'model_type': 'gemma3_text', 'sliding_window': 1024,
    'rope_scaling': {'factor': 8.0, 'rope_type': 'linear'},
  }  # fmt: skip
  found = gemma.config_from_hf({'model_type': 'gemma3', 'text_config': said})
  assert found == gemma.VARIANTS['gemma3_4b']


def test_a_family_of_another_folder_is_named():
  with pytest.raises(UserError, match="'gemma2' model, expected 'qwen2' or"):
    load(FOLDER / 'gemma2', 'qwen')


def test_families_without_gguf_say_what_to_give(tmp_path):
  (tmp_path / 'a.gguf').touch()
  with pytest.raises(UserError, match=r'qwen reads no GGUF.*Hugging Face'):
    load(f'{tmp_path}/a.gguf', 'qwen')


# --------------------------------------------------------------- chat templates


@pytest.fixture(params=sorted(p.stem for p in FOLDER.glob('templates/*.jinja')))
def said(request):
  """A tokenizer, and (chat, what apply_chat_template made of it) of several."""
  saved = json.loads((FOLDER / 'chats.json').read_text())
  mine = saved['templates'][request.param]
  bpe = tokenizers.Tokenizer.from_str(json.dumps(saved['bpe']))
  ids = {
    name: bpe.token_to_id(token) for name, token in mine['special'].items()
  }
  template = FOLDER / 'templates' / f'{request.param}.jinja'
  tokenizer = text.BPETokenizer(
    bpe, template=template.read_text(), eos_ids=(ids['eos_token'],),
    pad_id=ids['pad_token'], start_id=ids.get('bos_token'),
  )  # fmt: skip
  chats = [[Message(**turn) for turn in chat] for chat in saved['chats']]
  return tokenizer, list(zip(chats, mine['said'], strict=True))


def test_chats_are_those_of_apply_chat_template(said):
  tokenizer, pairs = said
  controls = tokenizer.bpe.get_added_tokens_decoder()
  count = lambda ids: sum(i in controls for i in ids)
  seen = set()
  for messages, expected in pairs:
    if expected is None:
      with pytest.raises(UserError, match='refuses the conversation'):
        tokenizer.render(messages)
      continue
    assert tokenizer.render(messages) == expected['text']
    found = tokenizer.encode_chat(messages)
    decoded = tokenizer.bpe.decode(found, skip_special_tokens=False)
    assert decoded == expected['text']
    typed = any(
      t.content in m.content for t in controls.values() for m in messages
    )
    if typed:
      # To transformers a control string is one, whoever wrote it; not to us.
      assert count(found) < count(expected['tokens'])
    else:
      assert found == expected['tokens']
    seen.add(typed)
  assert seen == {True, False}


def test_templates_hear_of_the_same_day_whenever_they_run():
  said = text.render_chat('{{ strftime_now("%d.%m.%Y") }}', [])
  assert said == '26.07.2024'


def test_a_template_finds_the_published_names_of_tokens_alone(tmp_path):
  bpe = tokenizers.Tokenizer(tokenizers.models.BPE({'a': 0}, []))
  bpe.add_special_tokens(['<b>', '<e>'])
  shown = '{{ bos_token }}|{{ eos_token }}|{{ bos_token is defined }}'
  make = lambda **start: text.BPETokenizer(
    bpe, template=shown, eos_ids=(2,), pad_id=2, **start
  )
  for number, (start, expected) in enumerate(
    [({'start_id': 1}, '<b>|<e>|True'), ({}, '|<e>|False')]
  ):
    tokenizer = make(**start)
    assert tokenizer.render([]) == expected
    folder = tmp_path / str(number)
    folder.mkdir()
    tokenizer.save(folder)
    again = text.from_folder(folder)
    assert again.render([]) == expected
    assert again.start_id == tokenizer.start_id


def test_of_several_templates_the_default_one_is_taken(tmp_path):
  text.ByteTokenizer().save(tmp_path)
  path = tmp_path / 'tokenizer_config.json'
  each = [{'name': n, 'template': n} for n in ('tool_use', 'default')]
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'chat_template': each})
  )
  assert text.from_folder(tmp_path).template == 'default'
  path.write_text(
    json.dumps(json.loads(path.read_text()) | {'chat_template': each[:1]})
  )
  with pytest.raises(UserError, match='no chat_template'):
    text.from_folder(tmp_path)


# ------------------------------------------------------- straight to the shards


class Counted:
  """A tensor in bfloat16 that tells how much of it was read."""

  def __init__(self, array):
    self.array, self.read = array.astype(jnp.bfloat16), 0
    self.shape = array.shape

  def __getitem__(self, index):
    part = self.array[index].copy()
    self.read += part.nbytes
    return part


@pytest.fixture(scope='module')
def wide(make_tiny):
  """Eight layers of two megabytes."""
  return make_tiny(
    'qwen', layers=8, embed=128, heads=8, kv_heads=4, head_dim=16, mlp=1024,
    qkv_bias=True, qk_norm=False,
  )  # fmt: skip


def test_parameters_are_read_once_and_a_tensor_at_a_time(wide, mesh):
  names = config.load('models', 'qwen').names(wide.config)
  files = {
    name: Counted(array)
    for name, array in huggingface.tensors(wide.params, names, wide.config)
  }
  stored = huggingface.params(files, names, wide.config)
  shardings = learner.param_shardings(wide.decoder, mesh)
  checkpoint.place(stored, shardings)
  # Once for all the devices that hold it. What is compiled is not traced below.
  for name, tensor in files.items():
    assert tensor.read == tensor.array.nbytes, name
  # Of layers alone, whose parameters are the devices' and not traced.
  tracemalloc.start()
  before = tracemalloc.get_traced_memory()[0]
  placed = checkpoint.place(stored['layers'], shardings['layers'])
  peak = tracemalloc.get_traced_memory()[1] - before
  tracemalloc.stop()
  sizes = [4 * math.prod(tensor.shape) for tensor in files.values()]
  # The tensor at hand, those that the runtime is yet to free, and Python's own.
  assert peak < 2 * max(sizes) < sum(sizes) / 10
  for name, found in placed.items():
    rounded = wide.params['layers'][name].astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, rounded.astype(np.float32))
    wanted = shardings['layers'][name]
    assert found.dtype == np.float32
    assert found.sharding.is_equivalent_to(wanted, found.ndim)


def test_a_folder_and_a_workdir_are_placed_as_they_are_read(
  wide, mesh, tmp_path
):
  checkpoint.save_hf(tmp_path / 'hf', wide, wide.params, shard_bytes=10**6)
  one = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  _, shardings = learner.state_shardings(wide.decoder, optax.sgd(0.1), one)
  state = learner.fresh_state(
    sharding.to_global(wide.params, shardings.params), optax.sgd(0.1), shardings
  )
  checkpoint.save_hf(tmp_path / 'run' / 'model', wide, None)
  saver = checkpoint.Checkpointer(tmp_path / 'run', keep=1)
  saver.save(3, state, {})
  saver.close()
  target = learner.param_shardings(wide.decoder, mesh)
  for source, value in (('hf', 0.0), ('run', wide.params['value_head'])):
    model = load(tmp_path / source, 'qwen')
    placed = learner.place_params(
      model.decoder, model.stored, target, jax.random.key(0)
    )
    expected = wide.params | {'value_head': value + np.zeros(128, np.float32)}
    jax.tree.map(np.testing.assert_array_equal, placed, expected)
    jax.tree.map(np.testing.assert_array_equal, model.params, expected)
    for found, wanted in zip(
      jax.tree.leaves(placed), jax.tree.leaves(target), strict=True
    ):
      assert found.sharding.is_equivalent_to(wanted, found.ndim)


def test_a_step_of_a_workdir_is_exported(wide, one_device, tmp_path):
  tx = optax.sgd(0.1)
  _, shardings = learner.state_shardings(wide.decoder, tx, one_device)
  params = sharding.to_global(wide.params, shardings.params)
  checkpoint.save_hf(tmp_path / 'run' / 'model', wide, None)
  saver = checkpoint.Checkpointer(tmp_path / 'run', keep=2)
  for step in (3, 4):
    scaled = jax.tree.map(lambda p, step=step: p * step, params)
    saver.save(step, learner.fresh_state(scaled, tx, shardings), {})
  saver.close()
  names = config.load('models', 'qwen').names(wide.config)
  for source, step in (('run@3', 3), ('run', 4)):
    output = tmp_path / f'out{step}'
    export.export(str(tmp_path / source), 'qwen', str(output), 2 * 10**6)
    files, found = weights(output)
    assert len(files) > 1
    for name, array in huggingface.tensors(wide.params, names, wide.config):
      np.testing.assert_array_equal(found[name], array * step)


def test_a_split_that_no_file_has_an_axis_for_is_refused(wide, mesh):
  """Of a run of axes, only the first is a run of rows in the file."""
  names = config.load('models', 'qwen').names(wide.config)
  files = dict(huggingface.tensors(wide.params, names, wide.config))
  stored = huggingface.params(files, names, wide.config)['layers']['q']
  for spec in (('data',), (None, None, None, 'data')):
    wanted = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    with pytest.raises(ValueError, match='LDQH cannot be split as'):
      stored.place(wanted)


# ---------------------------------------------------------------------- export


def weights(folder):
  files = sorted(folder.glob('*.safetensors'))
  tensors = [safetensors.numpy.load_file(f) for f in files]
  return [f.name for f in files], {k: v for t in tensors for k, v in t.items()}


def test_export_splits_the_files_at_the_size(published, tmp_path):
  model, _ = published
  sizes = model.config
  names = config.load('models', model.family).names(sizes)
  expected = dict(huggingface.tensors(model.params, names, sizes))
  for limit in (10**9, 6_000, 1):
    folder = tmp_path / str(limit)
    checkpoint.save_hf(folder, model, model.stored, limit)
    files, found = weights(folder)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    again = load(folder, model.family)
    assert again.config == sizes
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    index = folder / 'model.safetensors.index.json'
    if limit == 10**9:
      assert files == ['model.safetensors'] and not index.exists()
      continue
    said = json.loads(index.read_text())
    total = sum(a.nbytes for a in expected.values())
    assert said['metadata']['total_size'] == total
    assert set(said['weight_map']) == set(expected)
    for i, name in enumerate(files):
      assert name == f'model-{i + 1:05}-of-{len(files):05}.safetensors'
      held = safetensors.numpy.load_file(folder / name)
      assert {said['weight_map'][t] for t in held} == {name}
      # Nothing is split, so a tensor that is larger alone has its own file.
      size = sum(a.nbytes for a in held.values())
      assert size <= limit or len(held) == 1
    assert limit > 1 or len(files) == len(expected)


@pytest.mark.parametrize(
  'size, expected',
  [('5GB', 5 * 10**9), ('200 mb', 2 * 10**8), ('7KB', 7000), ('12', 12)],
)
def test_sizes_are_read_as_they_are_written(size, expected):
  assert export.read_bytes(size) == expected


@pytest.mark.parametrize('size', ['', 'GB', '-1GB', '1.5GB', '5GiB', '0GB'])
def test_other_sizes_are_refused(size):
  with pytest.raises(UserError, match='--shard_size is .* such as 5GB'):
    export.read_bytes(size)


def test_export_refuses_a_folder_that_is_in_use(tmp_path):
  (tmp_path / 'a').touch()
  for output in (tmp_path, tmp_path / 'a'):
    with pytest.raises(UserError, match='give another --output'):
      export.export(str(FOLDER / 'qwen3'), 'qwen', str(output), 10**9)
  with pytest.raises(UserError, match='has no weights yet'):
    export.export('random:tiny', 'llama', str(tmp_path / 'b'), 10**9)
  assert not (tmp_path / 'b').exists()


def test_export_by_its_command_line(tmp_path):
  def run(*args):
    return subprocess.run(
      [
        sys.executable, '-m', 'alignment_rl.export', '--family=gemma',
        f'--checkpoint={FOLDER / "gemma3"}', f'--output={tmp_path / "out"}',
        *args,
      ],
      cwd=ROOT, env=os.environ, capture_output=True, text=True,
    )  # fmt: skip

  wrong = run('--shard_size=big')
  assert wrong.returncode == 2 and "--shard_size is 'big'" in wrong.stderr
  assert not (tmp_path / 'out').exists()
  done = run('--shard_size=20KB')
  assert done.returncode == 0, done.stderr[-2000:]
  assert f'wrote {tmp_path / "out"}' in done.stdout
  files, found = weights(tmp_path / 'out')
  _, source = weights(FOLDER / 'gemma3')
  assert len(files) > 1
  # The source is in bfloat16, which float32 holds exactly.
  jax.tree.map(np.testing.assert_array_equal, found, source)
