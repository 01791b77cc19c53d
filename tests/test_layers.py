"""Who may import whom: the layers of the package, read from its source."""

import ast
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ('alignment_rl', 'configs', 'experiments', 'tests')
FOLDERS = ('models', 'streams', 'rewards', 'scenarios', 'benchmarks')

# A name is a module or a folder of alignment_rl. Each may import its own level
# and those below.
LEVELS = (
  'types text config errors sources mixture sharding metrics checkpoint stats '
  'lora kept huggingface reward_tables answer_pairs reporting axes attention '
  'chips hlo costs findings',
  'objectives scoring prose worlds refusals noncompliance ifeval rubrics '
  'endpoint judge probes models streams rewards scenarios',
  'forward rollout text_scorer learner reward_learner optimizers experience '
  'pool streaming serving',
  'suite items conditions results replies jobs benchmarks wire answering',
  'programs proposals train reward_train reward_report left_out evaluate '
  'report chat preflight scenarios.__main__ fetch serve export',
)
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names.split()}

# (importer, imported): why.
EXCEPTIONS = {
  ('sharding', 'models.decoder'): 'reads sizes off a DecoderConfig',
  ('lora', 'models.decoder'): 'knows which matrices a layer has',
  ('kept', 'models.decoder'): 'a base is kept with how adapters count',
  ('checkpoint', 'models.decoder'): 'a stored model is a DecoderConfig first',
  ('huggingface', 'models.decoder'): 'a config.json is a DecoderConfig',
  ('streams.traits', 'scenarios.schema'): 'the stream that reads the data set',
  ('streams.traits', 'scenarios.builder'): 'the stream that reads the data set',
}


def modules():
  """Name of every module of the repository -> its file."""
  files = [p for package in PACKAGES for p in (ROOT / package).rglob('*.py')]
  names = ['.'.join(p.relative_to(ROOT).with_suffix('').parts) for p in files]
  return {
    name.removesuffix('.__init__'): path
    for name, path in zip(names, files, strict=True)
  }


MODULES = modules()


def imports(path):
  """Full names that a file imports, anywhere in it; of ours, the modules."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path.name}: write absolute imports'
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        found.add(full if full in MODULES else node.module)
  return found


IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def inside(name):
  return name.removeprefix('alignment_rl.')


def pairs():
  """(importer, imported) within alignment_rl, without the package's name."""
  for name, found in sorted(IMPORTS.items()):
    for other in sorted(found):
      if name.startswith('alignment_rl.') and other.startswith('alignment_rl.'):
        yield inside(name), inside(other)


def level(name):
  return LEVEL.get(name, LEVEL[name.split('.')[0]])


def folder(name):
  """The plug-in folder of a plug-in; of any other module, None."""
  parts = name.split('.')
  return parts[0] if len(parts) == 2 and parts[0] in FOLDERS else None


def test_the_reader_of_imports_finds_every_form(tmp_path):
  path = tmp_path / 'a.py'
  path.write_text(
    'import os.path, jax\nfrom alignment_rl import (\n  text, config as c)\n'
    'from alignment_rl.errors import UserError\n'
    'def f():\n  from alignment_rl.models.decoder import Decoder\n'
  )
  assert imports(path) == {
    'os.path', 'jax', 'alignment_rl.text', 'alignment_rl.config',
    'alignment_rl.errors', 'alignment_rl.models.decoder',
  }  # fmt: skip


def test_every_module_has_a_level():
  ours = [n for n in MODULES if n.startswith('alignment_rl.')]
  assert len(ours) > 20
  assert {inside(n).split('.')[0] for n in ours} <= set(LEVEL), 'add to LEVELS'


def test_modules_import_their_own_level_and_below():
  upward = {p for p in pairs() if level(p[1]) > level(p[0])}
  assert upward - set(EXCEPTIONS) == set()


def test_nothing_in_the_package_imports_configs_experiments_or_tests():
  for name, found in IMPORTS.items():
    if name.split('.')[0] == 'alignment_rl':
      tops = {other.split('.')[0] for other in found}
      assert not tops & {'configs', 'experiments', 'tests'}, name


def test_plug_ins_import_no_sibling_and_no_other_folder_of_their_level():
  # What the plug-ins of their folder are made of, themselves no plug-ins.
  shared = {
    'models.decoder', 'scenarios.schema', 'scenarios.duplicates',
    'scenarios.descriptions',
  }  # fmt: skip
  sideways = {
    (name, other)
    for name, other in pairs()
    if folder(name) and folder(other) and level(name) == level(other)
    if not (other in shared and folder(name) == folder(other))
  }
  assert sideways - set(EXCEPTIONS) == set()


def test_rewards_never_import_benchmarks():
  assert [p for p in pairs() if folder(p[0]) == 'rewards'] != []
  for name, other in pairs():
    if name.split('.')[0] == 'rewards':
      assert not other.startswith(('benchmarks', 'suite')), name


def test_every_exception_is_still_one():
  assert set(EXCEPTIONS) <= set(pairs())


def test_report_imports_what_it_needs_alone_and_nothing_imports_it():
  inner = {}
  for name, other in pairs():
    inner.setdefault(name, set()).add(other)
  parts = {inside(n) for n in IMPORTS if inside(n).startswith('reporting.')}
  assert len(parts) > 10
  for name in ('report', *parts):
    rest = inner.get(name, set()) - parts
    assert rest <= {'stats', 'errors', 'reporting'}, name
    tops = {n.split('.')[0] for n in IMPORTS[f'alignment_rl.{name}']}
    assert not tops & {'jax', 'flax', 'optax', 'orbax', 'chex'}, name
  importers = {
    n for n, found in IMPORTS.items() if 'alignment_rl.report' in found
  }
  assert not {n for n in importers if not n.startswith('tests.')}


def test_report_runs_without_jax():
  code = """import sys
from alignment_rl import report
assert not {'jax', 'flax', 'tensorflow'} & set(sys.modules)"""
  environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
  subprocess.run([sys.executable, '-c', code], check=True, env=environment)
