"""Rows from every kind of source, and the streams made of rows."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from array_record.python import array_record_module

from alignment_rl import sources
from alignment_rl.errors import UserError
from alignment_rl.streams import chat, records
from alignment_rl.types import Example, Message

ROWS = [
  {'prompt': 'é \u2028 天', 'n': 1, 'tags': ['a']},
  {'prompt': 'two', 'n': 2.5, 'more': {'x': None}},
  {'prompt': 'three'},
]
# TFDS and datasets read their folders from the environment when imported.
PREPARED = """
import json, os, pathlib, sys
import numpy as np
import tensorflow_datasets as tfds
from alignment_rl import sources
from alignment_rl.errors import UserError
from alignment_rl.streams import records

text = tfds.features.Text()
features = tfds.features.FeaturesDict({
  'prompt': text,
  'turns': tfds.features.Sequence({'role': text, 'content': text}),
  'tags': tfds.features.Sequence(text),
  'inner': {'numbers': tfds.features.Sequence(np.float32), 'sure': np.bool_},
  'many': tfds.features.Sequence({'name': text, 'points': np.float32}),
  'label': tfds.features.ClassLabel(names=['no', 'yes']),
})

class Tiny(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')
  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=features)
  def _split_generators(self, dl_manager):
    pathlib.Path(os.environ['MADE'], type(self).__name__).touch()
    return {'train': self._generate_examples()}
  def _generate_examples(self):
    for n in range(3):
      yield n, {
        'prompt': f'é {n}', 'label': n % 2, 'tags': ['a', '天'],
        'turns': [{'role': 'user', 'content': f'hello {n}'}],
        'inner': {'numbers': [0.5, n], 'sure': n == 1},
        'many': [{'name': 'x', 'points': 2}, {'name': 'y', 'points': -0.5}],
      }

class Unprepared(Tiny):
  pass

Tiny(file_format='array_record').download_and_prepare()
out = {}
for source in sys.argv[2:]:
  try:
    rows = sources.rows(source)
    out[source] = [rows[i] for i in range(len(rows))]
    assert rows[-1] == out[source][-1]
    if 'turns' in rows[0]:
      example = records.make(source=source, prompt='turns')[0]
      said = [[m.role, m.content] for m in example.messages]
      out[source + ' messages'] = said
  except UserError as e:
    out[source] = str(e)
pathlib.Path(sys.argv[1]).write_text(json.dumps(out))
"""


def write_lines(path, rows, end='\n'):
  lines = (json.dumps(row, ensure_ascii=False) for row in rows)
  path.write_text('\n'.join(lines) + end, encoding='utf-8')
  return path


def write_array_record(path, values):
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for value in values:
    writer.write(value)
  writer.close()
  return path


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """What a process with its own folders of TFDS and datasets reads."""
  folder = tmp_path_factory.mktemp('prepared')
  (folder / 'hub').mkdir()
  turns = [{'role': 'user', 'content': 'hi'}]
  write_lines(
    folder / 'hub' / 'train.jsonl',
    [{'prompt': f'row {n}', 'turns': turns} for n in range(2)],
  )
  write_lines(folder / 'hub' / 'test.jsonl', [{'prompt': 'é', 'turns': turns}])
  asked = {
    'tfds': 'tfds:tiny/train', 'slice': 'tfds:tiny/train[1:]',
    'split': 'tfds:tiny/nope', 'none': 'tfds:absent/train',
    'unprepared': 'tfds:unprepared/train', 'no split': 'tfds:tiny',
    'hf': f'hf:{folder}/hub/train', 'hf test': f'hf:{folder}/hub/test',
    'hf config': f'hf:{folder}/hub/train#default',
    'hf split': f'hf:{folder}/hub/nope', 'hf none': f'hf:{folder}/no/train',
    'hf wrong config': f'hf:{folder}/hub/train#nope',
    'hf hub': 'hf:nobody/nothing/train',
  }  # fmt: skip
  (folder / 'script.py').write_text(PREPARED)
  subprocess.run(
    [sys.executable, folder / 'script.py', folder / 'out', *asked.values()],
    check=True, capture_output=True,
    env={
      **os.environ, 'TFDS_DATA_DIR': str(folder / 'tfds'), 'MADE': str(folder),
      'HF_HOME': str(folder / 'hf'), 'HF_HUB_OFFLINE': '1',
    },
  )  # fmt: skip
  found = json.loads((folder / 'out').read_text())
  assert (folder / 'Tiny').exists()
  named = {name: found[source] for name, source in asked.items()}
  for name in ('tfds', 'hf'):
    named[f'{name} messages'] = found[f'{asked[name]} messages']
  return named | {'fetched': (folder / 'Unprepared').exists()}


@pytest.mark.parametrize('kind', ['jsonl', 'arrayrecord'])
def test_files_give_random_access_to_rows(kind, tmp_path):
  path = tmp_path / 'rows'
  if kind == 'jsonl':
    write_lines(path, ROWS)
  else:
    write_array_record(path, [json.dumps(r).encode() for r in ROWS])
  rows = sources.rows(f'{kind}:{path}')
  assert len(rows) == 3
  assert [rows[i] for i in (2, 0, -1, np.int64(1), -3)] == [
    ROWS[i] for i in (2, 0, 2, 1, 0)
  ]
  assert list(rows) == ROWS
  for beyond in (3, -4):
    with pytest.raises(IndexError):
      rows[beyond]


def test_jsonl_is_read_by_offset_when_asked(tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', ROWS)
  rows = sources.rows(f'jsonl:{path}')
  data = path.read_bytes()
  path.write_bytes(data.replace(b'"two"', b'"too"'))
  assert rows[1]['prompt'] == 'too'


def test_jsonl_passes_over_blank_lines_and_takes_a_last_line_without_end(
  tmp_path,
):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(b'\n{"n": 0}\r\n\r\n  \n{"n": 1}\n\n{"n": 2}')
  assert list(sources.rows(f'jsonl:{path}')) == [{'n': n} for n in range(3)]


def test_tfds_rows_are_plain_and_sequences_of_objects_are_lists(prepared):
  expected = [
    {
      'prompt': f'é {n}', 'label': n % 2, 'tags': ['a', '天'],
      'turns': [{'role': 'user', 'content': f'hello {n}'}],
      'inner': {'numbers': [0.5, float(n)], 'sure': n == 1},
      'many': [{'name': 'x', 'points': 2.0}, {'name': 'y', 'points': -0.5}],
    }
    for n in range(3)
  ]  # fmt: skip
  key = lambda row: row['prompt']
  assert sorted(prepared['tfds'], key=key) == expected
  assert prepared['slice'] == prepared['tfds'][1:]
  [[role, content]] = prepared['tfds messages']
  assert role == 'user' and content.startswith('hello ')


def test_tfds_fetches_nothing_and_says_what_is_missing(prepared):
  # `Unprepared` notes a call of its download; a prepared one notes it, too.
  assert prepared['fetched'] is False
  assert "TFDS has no 'train' of 'unprepared' to read" in prepared['unprepared']
  assert "no 'nope' of 'tiny' to read (ValueError" in prepared['split']
  assert 'DatasetNotFoundError' in prepared['none']
  assert "'tiny', expected tfds:NAME/SPLIT" in prepared['no split']


def test_hf_reads_a_folder_offline(prepared):
  assert [row['prompt'] for row in prepared['hf']] == ['row 0', 'row 1']
  assert prepared['hf config'] == prepared['hf']
  [row] = prepared['hf test']
  assert row == {'prompt': 'é', 'turns': [{'role': 'user', 'content': 'hi'}]}
  assert prepared['hf messages'] == [['user', 'hi']]
  for name, said in (
    ('hf split', 'Unknown split'), ('hf none', 'FileNotFoundError'),
    ('hf wrong config', "'nope' not found"), ('hf hub', 'ConnectionError'),
  ):  # fmt: skip
    assert prepared[name].startswith('datasets cannot load '), name
    assert said in prepared[name], name


def test_errors_of_libraries_are_one_line(prepared):
  said = [v for v in prepared.values() if isinstance(v, str)]
  assert len(said) == 8 and not any('\n' in line for line in said)


def test_a_source_that_is_none_is_named(tmp_path):
  empty = tmp_path / 'empty'
  empty.write_text('\n \n')
  none = write_array_record(tmp_path / 'none', [])
  small, large = tmp_path / 'small', tmp_path / 'large'
  small.write_text('hello\n')
  large.write_text('hello, world\n' * 20_000)
  for source, message in (
    ('rows.jsonl', 'expected KIND:NAME with KIND one of'),
    ('jsonl:', 'expected KIND:NAME'),
    ('parquet:x', "is 'parquet:x'.*'tfds', 'jsonl', 'arrayrecord', 'hf'"),
    (f'jsonl:{tmp_path}/nope', 'nope does not exist'),
    (f'jsonl:{tmp_path}', 'does not exist'),  # a folder
    (f'arrayrecord:{tmp_path}/nope', 'nope does not exist'),
    (f'jsonl:{empty}', 'holds no rows'),
    (f'arrayrecord:{none}', 'holds no rows'),
    (f'arrayrecord:{small}', 'small is no array_record file'),
    (f'arrayrecord:{large}', 'large is no array_record file'),
    ('hf:name', 'expected hf:NAME/SPLIT'),
    ('hf:/train', 'expected hf:NAME/SPLIT'),
  ):
    with pytest.raises(UserError, match=message) as error:
      sources.rows(source)
    assert '\n' not in str(error.value), source


@pytest.mark.parametrize('kind', ['jsonl', 'arrayrecord'])
def test_a_row_that_is_no_object_is_named(kind, tmp_path):
  path = tmp_path / 'rows'
  values = [b'{"n": 0}', b'{"n": ', b'[1]', b'\xff\xfe{}', b'9' * 5000]
  if kind == 'jsonl':
    path.write_bytes(b'\n'.join(values))
  else:
    write_array_record(path, values)
  rows = sources.rows(f'{kind}:{path}')
  assert rows[0] == {'n': 0}
  for index, message in (
    (1, 'row 1: not JSON'), (2, 'row 2: found list, expected an object'),
    (3, 'row 3: not JSON'), (4, 'row 4: not JSON'),
  ):  # fmt: skip
    with pytest.raises(UserError, match=message):
      rows[index]


def test_columns_names_the_row_that_lacks_a_field():
  rows = [{'a': 1, 'b': 2}, {'b': 3}]
  assert list(sources.columns(rows, ['b'])) == [(2,), (3,)]
  assert list(sources.columns(rows[:1], ['b', 'a'])) == [(2, 1)]
  with pytest.raises(UserError, match=r"row 1 lacks \['a'\].*\['b'\]"):
    list(sources.columns(rows, ['a']))


def test_records_are_prompts_in_the_order_of_their_rows(tmp_path):
  turns = [
    {'role': 'system', 'content': 'Be kind.'},
    {'role': 'user', 'content': 'Hm?', 'time': 3},
  ]
  rows = [
    {'q': 'One?', 'reply': 'A.', 'rubric': [1]},
    {'q': turns, 'reply': 'B.', 'rubric': [2]},
    {'q': 'Three?'},
  ]
  source = f'jsonl:{write_lines(tmp_path / "rows.jsonl", rows)}'
  found = records.make(
    source=source, prompt='q', target='reply', metadata=('rubric',), first=2
  )
  assert found == [
    Example(
      f'records/{source}/0', (Message('user', 'One?'),), 'A.',
      metadata={'rubric': [1]},
    ),
    Example(
      f'records/{source}/1',
      (Message('system', 'Be kind.'), Message('user', 'Hm?')), 'B.',
      metadata={'rubric': [2]},
    ),
  ]  # fmt: skip
  every = records.make(source=source, prompt='q')
  assert [e.id.rsplit('/', 1)[1] for e in every] == ['0', '1', '2']
  assert every[2] == Example(every[2].id, (Message('user', 'Three?'),))
  assert records.make(source=source, prompt='q', first=9) == every
  with pytest.raises(UserError, match=r"row 2 lacks \['reply'\]"):
    records.make(source=source, prompt='q', target='reply')


USER = {'role': 'user', 'content': 'Hm?'}


@pytest.mark.parametrize(
  'prompt',
  [
    '', '  ', None, 3, {}, [], [3], ['Hm?'], USER, [{'role': 'user'}],
    [USER | {'content': ' '}], [USER | {'content': None}],
    [USER | {'role': 'tool'}, USER], [USER, USER | {'role': 'assistant'}],
    [USER | {'role': 'system'}],
  ],
)  # fmt: skip
def test_records_name_a_prompt_of_another_form(prompt, tmp_path):
  path = write_lines(tmp_path / 'rows.jsonl', [{'prompt': prompt}])
  with pytest.raises(UserError, match='row 0: prompt is .*expected text, or'):
    records.make(source=f'jsonl:{path}')


@pytest.mark.parametrize('target', ['', ' ', None, 3, ['A.']])
def test_records_name_a_target_that_is_no_text(target, tmp_path):
  row = {'prompt': 'Hm?', 'reply': target}
  path = write_lines(tmp_path / 'rows.jsonl', [row])
  with pytest.raises(UserError, match='row 0: reply is .*expected text to'):
    records.make(source=f'jsonl:{path}', target='reply')


def test_chat_holds_the_requests_of_a_split(tmp_path, monkeypatch):
  path = tmp_path / 'chat.jsonl'
  monkeypatch.setattr(chat, 'PATH', path)
  rows = [
    {
      'id': f'chat/{n}', 'split': split, 'topic': 'tea', 'voice': 'plain',
      'turns': turns, 'helpful': f'é \u2028 {n}', 'unhelpful': f'no {n}',
    }
    for n, (split, turns) in enumerate(
      [
        ('train', [USER]),
        ('held_out', [USER]),
        ('train', [{'role': 'system', 'content': 'Short.'}, USER]),
      ]
    )
  ]  # fmt: skip
  write_lines(path, rows)
  first, last = chat.make(split='train')
  assert first == Example(
    'chat/0', (Message('user', 'Hm?'),), 'é \u2028 0', ('é \u2028 0', 'no 0'),
    {
      'topic': 'tea', 'voice': 'plain',
      'replies': {'helpful': 'é \u2028 0', 'unhelpful': 'no 0'},
    },
  )  # fmt: skip
  assert last.messages == (Message('system', 'Short.'), Message('user', 'Hm?'))
  [held_out] = chat.make(split='held_out', system='Be kind.')
  assert held_out.messages[0] == Message('system', 'Be kind.')
  # A conversation's own system message stays the only one.
  assert chat.make(split='train', system='Be kind.')[1] == last
  with pytest.raises(UserError, match="split is 'test', expected one of"):
    chat.make(split='test')


def test_shipped_chat_is_whole_and_its_replies_are_of_like_length():
  splits = {split: chat.make(split=split) for split in chat.SPLITS}
  assert {k: len(v) for k, v in splits.items()} == {
    'train': 160, 'held_out': 40
  }  # fmt: skip
  every = [e for examples in splits.values() for e in examples]
  assert len({e.id for e in every}) == len({e.messages for e in every}) == 200
  longer = 0.0
  for e in every:
    roles = [m.role for m in e.messages]
    assert roles in (['user'], ['user', 'assistant', 'user']), e.id
    assert e.metadata['topic'] and e.metadata['voice'], e.id
    good, bad = (len(reply.split()) for reply in e.choices)
    assert abs(good - bad) <= 8 and e.choices[0] != e.choices[1], e.id
    longer += (np.sign(good - bad) + 1) / 2 / len(every)
  # Length does not tell which reply helps.
  assert 0.4 < longer < 0.6


def test_samples_can_be_made():
  assert [e.target for e in records.make(**records.SAMPLE)] == [
    e.choices[0] for e in first_chats(records.SAMPLE['first'])
  ]
  assert chat.make(**chat.SAMPLE)


def first_chats(count):
  every = [e for split in chat.SPLITS for e in chat.make(split=split)]
  lines = pathlib.Path(chat.PATH).read_text(encoding='utf-8').split('\n')
  order = [json.loads(line)['id'] for line in lines[:count]]
  return [next(e for e in every if e.id == name) for name in order]
