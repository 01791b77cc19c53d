"""Preflight: what a config takes of a chip, and what is proposed instead.

The chips here are made up and the compiler is the CPU's; only the last test has
the TPU's, where it is installed.
"""

import dataclasses
import importlib.util
import json
import sys

import jax
import pytest

from alignment_rl import (
  chips,
  config,
  costs,
  findings,
  preflight,
  programs,
  proposals,
  sharding,
)
from alignment_rl.errors import UserError
from configs import rl, sft

GB = 10**9
TOY = chips.Chip(
  'toy', flops=1e12, memory=GB, usable=GB, bandwidth=1e10, interconnect=1e9
)


def tiny(module=rl, **batch):
  c = module.get_config('tiny')
  c.mesh.update(data=1, fsdp=4, tensor=2)
  c.batch.update(
    prompts=8, prompt_length=64, completion_length=8, micro_batches=1, **batch
  )
  return c


@pytest.fixture(scope='module')
def found():
  """All programs of a tiny run, by name."""
  return {f.name: f for f in preflight.check(tiny(), TOY, jax.devices())}


def test_every_program_of_a_step_is_compiled(found):
  assert list(found) == ['sampler', 'judge', 'scores', 'update']
  assert all(f.compiled and f.fits for f in found.values())
  # 32 replies, eight at a time.
  assert [f.calls for f in found.values()] == [1, 4, 1, 1]


def test_memory_is_that_of_the_parameters_and_what_stands_beside(found):
  sizes = programs.load_model(tiny()).config
  D, F, V, L = sizes.embed, sizes.mlp, sizes.vocab, sizes.layers
  heads = (2 * sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
  # Matrices are split over both axes, norms and value head over fsdp.
  matrices, vectors = L * D * (heads + 3 * F) + V * D, D * (2 * L + 2)
  params = 4 * (matrices / 8 + vectors / 4)
  memory = {name: f.memory for name, f in found.items()}
  # Policy, two moments and two counters; the reference.
  state = 4 + 3 * params + 2 * 4
  update = memory['update']
  assert update.resident == params
  assert state < update.arguments < state + 20_000  # and the batch
  assert update.aliased == state
  assert memory['scores'].resident == memory['sampler'].resident
  assert memory['scores'].resident == pytest.approx(3 * params, abs=20)
  for f in found.values():
    m = f.memory
    own = m.arguments + m.outputs - m.aliased + m.temporaries + m.code
    assert m.total == own + m.resident and m.temporaries > 0


def test_the_parts_are_those_of_the_compiler(found):
  task = preflight.plan(tiny(), _meshes())[0][2]
  stats = task.traced.lower().compile().memory_analysis()
  memory = found['scores'].memory
  assert memory.arguments == stats.argument_size_in_bytes
  assert memory.temporaries == pytest.approx(stats.temp_size_in_bytes, rel=0.01)


def _meshes():
  return sharding.make_meshes(tiny().mesh)


def test_seconds_follow_from_the_chip(found):
  for f in found.values():
    assert f.seconds['products'] == f.flops / 1e12
    assert f.seconds['memory'] == f.costs.bytes_moved / 1e10
    assert f.seconds['interconnect'] == f.costs.bytes_sent / 1e9
    assert f.least == max(f.seconds.values()) == f.seconds[f.bound]
    # As much as all chips must multiply, of what they could in that time.
    assert 0 < f.mfu <= f.seconds['products'] / f.least + 1e-9
  step = findings.step_seconds(list(found.values()))
  assert step == sum(f.calls * f.least for f in found.values())


def test_micro_batches_and_repeated_blocks_do_not_change_the_work():
  def update(**changes):
    c = tiny()
    c.update_from_flattened_dict(changes)
    (task,) = (t for t in preflight.plan(c, _meshes())[0] if t.name == 'update')
    return task

  once = update()
  parts = update(**{'batch.micro_batches': 2})
  again = update(**{'model.remat': 'block'})
  assert once.work == parts.work == again.work
  flops = [costs.matrix_flops(t.traced.jaxpr, t.trips) for t in (once, again)]
  assert flops[0] == once.work < flops[1]


def test_judges_with_weights_of_their_own_are_held_too():
  c = tiny()
  c.judge.weights = c.gold.second.weights = 'random:tiny_scaled'
  c.log.gold_every = 1
  tasks, held = preflight.plan(c, _meshes())
  assert held['judge'] == held['gold.second'] > held['params']  # two heads
  assert [t.holds for t in tasks if t.name == 'judge'] == [('judge',)]
  c.log.gold_every = 0
  assert 'gold.second' not in preflight.plan(c, _meshes())[1]


def test_demonstrations_need_no_sampler_and_no_judge():
  tasks, _ = preflight.plan(tiny(sft), _meshes())
  assert [t.name for t in tasks] == ['update']
  c = tiny(sft)
  c.algorithm.kl = 0.1
  tasks, _ = preflight.plan(c, _meshes())
  assert [t.name for t in tasks] == ['scores', 'update']


def test_what_the_run_holds_beside_counts():
  # In another shape: a program that was compiled before leaves no report.
  task = preflight.plan(tiny(group=2), _meshes())[0][2]
  held = {'params': GB / 2, 'optimizer': GB / 2, 'reference': GB / 2}
  found = preflight.examine(task, _meshes()[0], TOY, held)
  assert found.compiled and not found.fits
  assert found.memory.resident == GB  # `scores` is given the reference
  assert found.memory.total - GB < GB / 100


def test_the_program_says_so_by_its_exit_code(found, monkeypatch, capsys):
  def run(usable, proposal=None):
    chip = dataclasses.replace(TOY, usable=usable)
    judged = [
      dataclasses.replace(f, fits=f.memory.total <= usable)
      for f in found.values()
    ]
    monkeypatch.setattr(
      chips, 'slice_devices', lambda name: (chip, jax.devices())
    )
    monkeypatch.setattr(preflight, 'check', lambda *args: judged)
    monkeypatch.setattr(proposals, 'search', lambda *args: proposal)
    fits = preflight.preflight(tiny(), 'toy:8', False)
    return fits, capsys.readouterr().out

  fits, text = run(GB)
  assert fits and 'NO' not in text and 'does not fit' not in text
  fits, text = run(found['update'].memory.total - 1)
  assert not fits
  assert (
    f'update does not fit: the largest array is {found["update"].largest[0][1]}'
    in text
  )
  assert 'No config was found that fits' in text
  fits, text = run(0, proposals.Proposal({'mesh.fsdp': 8}, [found['update']]))
  assert not fits and '--config.mesh.fsdp=8' in text


def test_json_holds_what_the_table_does(found, monkeypatch, capsys):
  monkeypatch.setattr(chips, 'slice_devices', lambda name: (TOY, jax.devices()))
  monkeypatch.setattr(preflight, 'check', lambda *a: list(found.values()))
  assert preflight.preflight(tiny(), 'toy:8', True)
  record = json.loads(capsys.readouterr().out)
  assert record['fits'] and record['proposal'] is None
  for got, f in zip(record['programs'], found.values(), strict=True):
    assert got['name'] == f.name and got['memory']['total'] == f.memory.total
    sent = sum(c['bytes'] for c in got['costs']['collectives'])
    assert sent == pytest.approx(f.costs.bytes_sent)
    assert {c['axes'] for c in got['costs']['collectives']} <= {
      'data', 'fsdp', 'tensor', 'fsdp+tensor', 'data+fsdp',
      'data+fsdp+tensor',
    }  # fmt: skip


@pytest.mark.parametrize('name', ['v5p', 'v3:2x2', 'nope:2x2', ''])
def test_an_unknown_slice_is_named(name):
  with pytest.raises(UserError, match='expected CHIP:SHAPE'):
    chips.slice_devices(name)


def test_without_libtpu_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(
    UserError, match=r"pip install 'alignment_rl\[preflight\]'"
  ):
    chips.slice_devices('v5e:2x2x1')


def test_a_config_that_does_not_fit_the_mesh_is_a_mistake():
  c = tiny()
  c.batch.prompts = 6
  with pytest.raises(UserError, match='raise it to 8'):
    preflight.plan(c, _meshes())


def compiler(need):
  """Findings whose temporaries are `need(c)`, and what was asked for."""
  asked = []

  def compile_(c, only=None):
    asked.append(only)
    out = []
    for name, temporaries in need(c).items():
      if only is None or name in only:
        memory = findings.Memory(1, 0, 0, temporaries, 0, 1)
        fits = memory.total <= TOY.usable
        out.append(
          findings.Finding(
            name, 1, True, fits, memory, costs.Costs(1, 1, {}), 1,
            {'products': 1.0}, 1.0, [(1, 'x')],
          )
        )  # fmt: skip
    return out

  return compile_, asked


def search(c, need):
  compile_, asked = compiler(need)
  return proposals.search(c, compile_(c), compile_, TOY, 8), asked


def changed(c, overrides):
  return config.override(c.copy_and_resolve_references(), overrides)


def small():
  c = tiny()
  c.mesh.update(data=2, fsdp=4, tensor=1)
  c.batch.update(prompts=32, prompt_length=256, completion_length=256)
  return c


def rows(c):
  return c.batch.prompts / c.batch.micro_batches


def test_the_mesh_comes_first_for_it_costs_nothing():
  found, asked = search(
    small(), lambda c: {'scores': GB / c.mesh.fsdp * 7, 'update': 1}
  )
  assert found.overrides == {'mesh.data': 1, 'mesh.fsdp': 8}
  # Only what did not fit is compiled again, and in the end all of it.
  assert asked == [None, ['scores'], None]
  assert [f.name for f in found.findings] == ['scores', 'update']


def test_then_blocks_are_repeated_then_micro_batches_taken_as_needed():
  # Eight rows at a time fit, 32 are tried, and no more than is needed.
  need = lambda c: {
    'update': GB * rows(c) / (24 if c.model.remat == 'block' else 4),
    'sampler': 1,
  }
  found, _ = search(small(), need)
  assert found.overrides == {
    'mesh.data': 1, 'mesh.fsdp': 8, 'model.remat': 'block',
    'batch.micro_batches': 2,
  }  # fmt: skip


def test_then_two_chips_share_a_row():
  need = lambda c: {'update': GB * rows(c) / c.mesh.tensor / 4, 'sampler': 1}
  found, _ = search(small(), need)
  assert found.overrides['mesh.tensor'] == 2
  assert found.overrides['mesh.fsdp'] == 4
  assert need(changed(small(), found.overrides))['update'] <= GB


def test_what_changes_the_run_comes_last():
  need = lambda c: {
    'sampler': GB * c.batch.prompts * c.batch.completion_length / 1024,
    'update': 1,
  }
  found, _ = search(small(), need)
  assert found.overrides == {
    'mesh.data': 1, 'mesh.fsdp': 8, 'batch.prompts': 8,
    'batch.micro_batches': 1, 'batch.completion_length': 64,
  }  # fmt: skip


def test_a_change_that_breaks_another_program_is_mended_too():
  # The update's mesh makes the judge too large, until it reads fewer rows.
  need = lambda c: {
    'update': 1.9 * GB / c.mesh.tensor,
    'judge': GB * c.judge.rows * c.mesh.tensor / 20,
  }
  c = small()
  c.judge.rows = 16
  found, _ = search(c, need)
  got = changed(c, found.overrides)
  assert (got.mesh.tensor, got.judge.rows) == (2, 8)
  assert all(f.fits for f in found.findings)


def test_nothing_is_proposed_that_was_not_found_to_fit():
  found, asked = search(small(), lambda c: {'update': 2 * GB, 'sampler': 1})
  assert found is None and len(asked) <= proposals.TRIES + 1


def test_parameters_that_do_not_fit_are_not_searched_for():
  def compile_(c, only=None):
    memory = findings.Memory(GB, 0, 0, 1, 0, GB)
    return [
      findings.Finding(
        'update', 1, False, False, memory, costs.Costs(1, 1, {}), 1,
        {'products': 1.0}, 1.0, [(1, 'x')],
      )
    ]  # fmt: skip

  c = tiny()
  assert proposals.search(c, compile_(c), compile_, TOY, 8) is None


def test_every_change_makes_a_config_that_train_takes():
  c = small()
  c.mesh.data = -1
  failing = compiler(
    lambda c: dict.fromkeys(['sampler', 'judge', 'scores', 'update'], 3 * GB)
  )[0](c)
  model = programs.load_model(c)
  for change in proposals.changes(c, model.config, failing, TOY, 8):
    changed = config.override(c.copy_and_resolve_references(), change)
    meshes = sharding.make_meshes(changed.mesh)
    programs.make(changed, model, meshes, 4)  # else a UserError


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs extra [preflight]'
)
def test_the_tpu_compiler_does_the_work_that_was_traced():
  chip, devices = chips.slice_devices('v5e:2x2x1')
  c = tiny()
  c.mesh.update(data=2, fsdp=1, tensor=2)
  found = preflight.check(c, chip, devices, ['sampler', 'update'])
  for f in found:
    assert f.fits and f.memory.total < GB / 10
    assert f.costs.flops == pytest.approx(f.flops, rel=0.1)
