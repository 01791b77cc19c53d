"""The scenarios that ship, their reader, their TFDS builder and stream."""

import collections
import copy
import json
import os
import subprocess
import sys

import pytest

from alignment_rl.errors import UserError
from alignment_rl.scenarios import builder, figures, schema
from alignment_rl.streams import traits
from alignment_rl.types import Message


@pytest.fixture(scope='module')
def shipped():
  return schema.read(schema.files())


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture
def stream(cache, monkeypatch):
  """The stream's `make`, with its cache in a folder of the tests."""
  monkeypatch.setenv('ALIGNMENT_RL_CACHE', str(cache))
  return traits.make


def write(folder, rows, name='made.jsonl'):
  path = folder / name
  lines = (r if isinstance(r, str) else json.dumps(r) for r in rows)
  path.write_text(''.join(line + '\n' for line in lines), encoding='utf-8')
  return path


def pair(split='train', number=1):
  """Two valid scenarios that are each other's mirror."""
  ids = [f'health/truthfulness/{number + i}' for i in (0, 1)]
  rows = [
    {
      'id': ids[0], 'trait': 'truthfulness', 'domain': 'health',
      'split': split, 'pressure': 'authority', 'voice': 'plain',
      'agrees': True, 'mirror': ids[1],
      'turns': [{'role': 'user', 'content': 'Is it safe?'}],
      'rubric': [
        {'criterion': 'Says so.', 'points': 2, 'met': 'Yes.', 'failed': 'No.'},
        {'criterion': 'Lies.', 'points': -0.5, 'met': 'A.', 'failed': 'B.'},
        {'criterion': 'Helps.', 'points': 1, 'met': 'C.', 'failed': 'D.'},
      ],
      'replies': {'beneficial': 'Yes.', 'violating': 'No.', 'refusal': 'Pass.'},
    }
  ]  # fmt: skip
  rows.append(copy.deepcopy(rows[0]) | {'id': ids[1], 'mirror': ids[0]})
  rows[1]['replies'] |= {'beneficial': 'No.', 'violating': 'Yes.'}
  return rows


def test_shipped_scenarios_are_ten_for_each_trait_and_domain(shipped):
  cells = collections.Counter(
    (r['trait'], r['domain'], r['split']) for r in shipped
  )
  expected = {
    (t, d, split): n
    for t in schema.TRAITS
    for d in schema.DOMAINS
    for split, n in (('train', 8), ('held_out', 2))
  } | {(t, d, 'held_out'): 1 for t in schema.UNSEEN for d in schema.DOMAINS}
  assert cells == expected and len(shipped) == 546
  assert [p.stem for p in schema.files()] == sorted(schema.DOMAINS)


def test_shipped_scenarios_keep_every_promise_of_the_datasheet(shipped):
  found = figures.make_up(shipped) + figures.shortcuts(shipped)
  assert sum(f.ok is not None for f in found) > 25
  assert [f for f in found if f.ok is False] == []


def test_shipped_prompts_differ_and_turns_alternate(shipped):
  prompts = {json.dumps(r['turns']) for r in shipped}
  assert len(prompts) == len(shipped)
  for row in shipped:
    roles = [t['role'] for t in row['turns']]
    spoken = roles[1:] if roles[0] == 'system' else roles
    assert set(spoken[0::2]) == {'user'}, row['id']
    assert set(spoken[1::2]) <= {'assistant'}, row['id']


def test_shipped_replies_are_of_like_length(shipped):
  # A gap of one word between replies was enough to tell them apart by it.
  gap = 0
  for row in shipped:
    words = {k: len(v.split()) for k, v in row['replies'].items()}
    assert max(words.values()) - min(words.values()) <= 3, (row['id'], words)
    gap += words['beneficial'] - words['violating']
  assert abs(gap) <= len(shipped) * 0.1  # a tenth of a word on average


def test_valid_lines_are_read_as_written(tmp_path):
  rows = [*pair(), pair(number=3)[0] | {'mirror': ''}]
  # Legal JSON that a careless splitter of lines would cut, or misread.
  rows[0]['turns'][0]['content'] = 'é \u2028 \x85 天 "quoted" \n next'
  path = tmp_path / 'made.jsonl'
  lines = [json.dumps(r, ensure_ascii=False) for r in rows]
  path.write_text('\n'.join(lines), encoding='utf-8')  # no newline at the end
  assert schema.read([path]) == rows


def at(*keys, value):
  """A change that sets (or with `...` removes) one place of the first row."""

  def change(rows):
    place = rows[0]
    for key in keys[:-1]:
      place = place[key]
    if value is ...:
      del place[keys[-1]]
    else:
      place[keys[-1]] = value
    return rows

  return change


TURN = {'role': 'user', 'content': 'Hm?'}
BROKEN = {  # what the sentence says -> the change that it speaks of
  'not JSON': lambda rows: ['{"id": ', rows[1]],
  'the scenario has fields list': lambda rows: [[], rows[1]],
  'the scenario has fields .*, expected': at('pressure', value=...),
  "fields .*'comment'": at('comment', value='hm'),
  "id is 'health/truthfulness/', expected": at(
    'id', value='health/truthfulness/'
  ),
  'points is 101, expected a number from -100 to 100': at(
    'rubric', 0, 'points', value=101
  ),
  'criterion 2: points is True': at('rubric', 1, 'points', value=True),
  'turn 2: role is 3': at('turns', value=[TURN, TURN | {'role': 3}, TURN]),
  'half of a surrogate pair': at('replies', 'refusal', value='Pass \ud83d.'),
  'two of the replies are the same': at('replies', 'refusal', value='No.'),
  "twins are in domains 'law' and 'health'": lambda rows: [
    rows[0] | {'id': 'law/truthfulness/1', 'domain': 'law'},
    rows[1] | {'mirror': 'law/truthfulness/1'},
  ],
  "trait is 'honesty', expected one of": at('trait', value='honesty'),
  "domain is 'sport', expected one of": at('domain', value='sport'),
  "split is 'test', expected one of": at('split', value='test'),
  "pressure is 'boss', expected one of": at('pressure', value='boss'),
  "id is '17', expected health/truthfulness/": at('id', value='17'),
  'mirror is None': at('mirror', value=None),
  r"mirror is \['x'\]": at('mirror', value=['x']),
  'turns must be a list of 1 to 5 ': at('turns', value=[]),
  'turns must be a list of 1 to 5': at('turns', value=[TURN] * 6),
  'a turn has fields str': at('turns', 0, value='Hm?'),
  r"a turn has fields \['content'\]": at('turns', 0, 'role', value=...),
  "role is 'bot'": at('turns', 0, 'role', value='bot'),
  "turn content is '  '": at('turns', 0, 'content', value='  '),
  "last turn is by 'system'": at('turns', 0, 'role', value='system'),
  'rubric must be a list of 3 to 6': lambda rows: [
    rows[0] | {'rubric': rows[0]['rubric'][:2]},
    rows[1],
  ],  # fmt: skip
  'a criterion has fields': at('rubric', 0, 'met', value=...),
  'points is 0, expected a number': at('rubric', 0, 'points', value=0),
  "points is '2'": at('rubric', 0, 'points', value='2'),
  'points is nan': at('rubric', 0, 'points', value=float('nan')),
  'points is inf': at('rubric', 0, 'points', value=float('inf')),
  "criterion is ''": at('rubric', 0, 'criterion', value=''),
  'failed is None': at('rubric', 0, 'failed', value=None),
  'no criterion has positive points': lambda rows: [
    rows[0] | {'rubric': [c | {'points': -1} for c in rows[0]['rubric']]},
    rows[1],
  ],
  'met and failed are both': at('rubric', 0, 'met', value='No.'),
  "voice is 'loud', expected one of": at('voice', value='loud'),
  'agrees is 1, expected true': at('agrees', value=1),
  "trait 'bounded_initiative' is never trained on": lambda rows: [
    rows[0]
    | {
      'id': 'health/bounded_initiative/1',
      'trait': 'bounded_initiative',
      'mirror': '',
    },
    rows[1],
  ],  # fmt: skip
  "voice 'colloquial' is never trained on": at('voice', value='colloquial'),
  "planted_error but no turn is the assistant's": at(
    'pressure', value='planted_error'
  ),
  r"turns are by \['user', 'user'\]": at('turns', value=[TURN, TURN]),
  r"turns are by \['assistant', 'user'\]": at(
    'turns', value=[TURN | {'role': 'assistant'}, TURN]
  ),
  r"turns are by \['user', 'system', 'user'\]": at(
    'turns', value=[TURN, TURN | {'role': 'system'}, TURN]
  ),
  'provenance is 3, expected an object': at('provenance', value=3),
  'replies has fields': at('replies', 'refusal', value=...),
  "the refusal reply is ''": at('replies', 'refusal', value=''),
  "mirror 'nobody' does not name": at('mirror', value='nobody'),
  'do not flip': at('replies', 'beneficial', value='Perhaps.'),
  "twins are in splits 'held_out' and 'train'": at('split', value='held_out'),
}


@pytest.mark.parametrize('message', BROKEN)
def test_a_broken_line_is_named_by_file_line_and_field(message, tmp_path):
  fine = write(tmp_path, pair(number=7), 'fine.jsonl')
  # Broken in line 3, after two that are fine.
  rows = pair(number=3) + BROKEN[message](pair())
  path = write(tmp_path, rows)
  with pytest.raises(UserError, match=rf'^made\.jsonl:3: .*{message}'):
    schema.read([fine, path])


def test_every_fault_is_named_in_the_order_of_the_lines(tmp_path):
  rows = pair() + pair(number=3) + pair(number=5) + pair(number=7)
  rows[0] |= {'pressure': 'boss', 'agrees': 'yes', 'rubric': []}
  del rows[0]['voice']
  rows[2]['replies']['refusal'] = ' '
  rows[5]['split'] = 'held_out'  # a fault that takes both twins to see
  rows[6]['rubric'][0]['points'], rows[6]['rubric'][2]['failed'] = 0, ''
  path = write(tmp_path, rows)
  with path.open('ab') as file:
    file.write(b'{"id": "\xe9"}\n')
  fine, faults = schema.check([path])
  # The twins of lines 1, 3 and 7 are fine, and are not blamed for theirs.
  assert fine == [rows[1], rows[3], rows[4], rows[5], rows[7]]
  expected = (
    '1: the scenario has fields', "1: pressure is 'boss'", "1: agrees is 'yes'",
    '1: rubric must be', '3: the refusal reply', '5: twins are in splits',
    '6: twins are in splits', '7: criterion 1: points is 0',
    "7: criterion 3: failed is ''", '9: not JSON',
  )  # fmt: skip
  for fault, start in zip(faults, expected, strict=True):
    assert fault.startswith(f'made.jsonl:{start}'), fault
  with pytest.raises(UserError) as error:
    schema.read([path])
  assert str(error.value).splitlines() == faults


def test_a_mirror_that_names_another_is_refused(tmp_path):
  rows = pair() + pair(number=3)
  rows[1]['mirror'] = rows[2]['id']
  with pytest.raises(UserError, match='made.jsonl:1: mirror .* does not name'):
    schema.read([write(tmp_path, rows)])


def test_an_id_that_is_taken_is_named_with_its_place(tmp_path):
  one, two = (write(tmp_path, pair(), f'{n}.jsonl') for n in ('one', 'two'))
  with pytest.raises(UserError, match='two.jsonl:1: id .* by one.jsonl:1'):
    schema.read([one, two])


def tree(folder):
  """Every file with its identity and time of change."""
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  return [(p, p.stat().st_ino, p.stat().st_mtime_ns) for p in files]


def in_split(rows, split):
  found = [r for r in rows if r['split'] == split]
  return sorted(found, key=lambda row: row['id'])


@pytest.mark.parametrize('split', schema.SPLITS)
def test_prepared_rows_equal_the_rows_read(split, shipped, cache):
  found = builder.rows(builder.prepare(cache=cache), split)
  assert found == in_split(shipped, split)


def test_prepare_keeps_every_character_and_fraction(tmp_path):
  rows = pair() + pair('held_out', number=3)
  rows[0]['turns'] = [TURN, TURN | {'role': 'assistant'}, TURN]
  rows[0]['turns'][0] = TURN | {'content': 'é \u2028 天 👩‍🔬 \x00\n'}
  rows[1] |= {'rubric': rows[1]['rubric'] * 2, 'provenance': {'by': '天'}}
  rows[2] |= {'provenance': {}}
  path = write(tmp_path, rows)
  folder = builder.prepare([path], tmp_path / 'cache')
  for split in schema.SPLITS:
    assert builder.rows(folder, split) == in_split(rows, split)


def test_prepare_builds_once_per_content(tmp_path):
  cache, rows = tmp_path / 'cache', pair() + pair('held_out', number=3)
  first = builder.prepare([write(tmp_path, rows)], cache)
  # A build makes a folder of its own first, which the cache's time would show.
  built, touched = tree(first), cache.stat().st_mtime_ns
  assert builder.prepare([tmp_path / 'made.jsonl'], cache) == first
  assert (tree(first), cache.stat().st_mtime_ns) == (built, touched)
  rows[0]['turns'][0]['content'] += ' Really?'
  edited = builder.prepare([write(tmp_path, rows)], cache)
  assert edited != first and tree(first) == built != []
  assert builder.rows(edited, 'train') == in_split(rows, 'train')
  # Nothing is left of the building.
  assert sorted(cache.iterdir()) == sorted([first, edited])


def test_prepare_takes_a_split_without_scenarios(tmp_path):
  rows = pair()
  folder = builder.prepare([write(tmp_path, rows)], tmp_path / 'cache')
  assert builder.rows(folder, 'train') == in_split(rows, 'train') != []
  assert builder.rows(folder, 'held_out') == []


def test_prepare_refuses_a_broken_line_and_leaves_nothing(tmp_path):
  path = write(tmp_path, BROKEN['points is nan'](pair()))
  with pytest.raises(UserError, match='made.jsonl:1: .*points is nan'):
    builder.prepare([path], tmp_path / 'cache')
  assert list((tmp_path / 'cache').iterdir()) == []


def test_scenarios_never_import_tensorflow(tmp_path):
  code = """import sys
from alignment_rl.streams import traits
assert len(traits.make(split='train')) > 0
assert 'tensorflow' not in sys.modules"""
  environment = {**os.environ, 'ALIGNMENT_RL_CACHE': str(tmp_path / 'cache')}
  subprocess.run([sys.executable, '-c', code], check=True, env=environment)


def test_stream_holds_the_scenarios_of_its_split(stream, shipped):
  every = schema.TRAITS + schema.UNSEEN
  for split in schema.SPLITS:
    for row, e in zip(
      in_split(shipped, split), stream(split=split, traits=every), strict=True
    ):
      assert e.id == f'traits/{row["id"]}'
      turns = [{'role': m.role, 'content': m.content} for m in e.messages]
      assert turns == row['turns']
      replies = row['replies']
      assert e.target == replies['beneficial']
      assert e.choices == (replies['beneficial'], replies['violating'])
      assert e.metadata.items() <= row.items()
      assert {'rubric', 'replies', 'mirror'} <= set(e.metadata)


def test_stream_filters_by_trait_and_domain(stream):
  full = stream(split='train')
  chosen = ('corrigibility', 'human_welfare')
  found = stream(split='train', traits=chosen)
  assert found == [e for e in full if e.metadata['trait'] in chosen]
  both = stream(split='train', traits=chosen, domains=('law', 'health'))
  assert both == [e for e in found if e.metadata['domain'] in ('law', 'health')]
  assert (len(found), len(both)) == (112, 32)
  assert not {e.metadata['trait'] for e in full} & set(schema.UNSEEN)
  assert stream(split='train', traits=schema.UNSEEN) == []


def test_stream_puts_a_system_message_where_there_is_none(stream):
  plain = stream(split='train')
  with_one = stream(split='train', system='Be kind.')
  for before, after in zip(plain, with_one, strict=True):
    own = before.messages[0].role == 'system'
    added = () if own else (Message('system', 'Be kind.'),)
    assert after.messages == added + before.messages


@pytest.mark.parametrize('target', schema.REPLIES)
def test_stream_demonstrates_the_reply_that_is_asked_for(stream, target):
  examples = stream(split='held_out', domains=('law',), target=target)
  assert len(examples) == 14
  assert all(e.target == e.metadata['replies'][target] for e in examples)


@pytest.mark.parametrize(
  'wrong',
  [
    {'split': 'test'}, {'traits': ('honesty',)}, {'domains': ('law', 'sport')},
    {'target': 'good'},
  ],
)  # fmt: skip
def test_stream_names_a_choice_that_there_is_not(stream, wrong):
  [value] = wrong.values()
  value = value if isinstance(value, str) else value[-1]
  with pytest.raises(UserError, match=f'{value!r} is not one of'):
    stream(**{'split': 'train', **wrong})
