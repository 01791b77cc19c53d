"""Everyday requests with one or two formatting constraints, one user turn each.

Source: requests and constraints authored here; the kinds are in the manner of
IFEval (Zhou et al. 2023, arXiv:2311.07911). Every fifth request is held out, so
no request is in two splits. Constraints can be met together within about 50
words. Cost: about 20 microseconds an item.
"""

import zlib

import numpy as np

from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message

# By topic, so that every fifth one spreads over all topics.
REQUESTS = (
  'How do I boil an egg?', 'Suggest a simple dinner for a tired evening.',
  'Tell me how to make a good cup of tea.',
  'What can I cook with leftover rice?', 'Explain how to store fresh bread.',
  'Recommend a snack to take on a hike.', 'How do I keep pasta from sticking?',
  'Describe your ideal breakfast.',
  'What should I pack for a weekend by the sea?',
  'Give me advice for a long train ride.', 'How can I get over jet lag?',
  'Describe a walk through an old town.',
  'Tell me how to plan a cheap holiday.', 'What makes a good travel companion?',
  'How do I stay safe on a mountain path?',
  'Recommend a day trip with small children.',
  'How do I prepare for a job interview?',
  'Write a short note to thank a colleague.',
  'Tell me how to run a better meeting.',
  'How can I ask my boss for a day off?',
  'Give me advice for my first day at a new job.',
  'Explain why breaks matter at work.', 'How do I write a clear email?',
  'What should I do after a mistake at work?', 'How do I keep my kitchen tidy?',
  'Tell me how to clean a window.', 'How can I make a small room feel bigger?',
  'Suggest a plant for a dark corner.',
  'What should I check before renting a flat?',
  'How do I get a coffee stain out of a shirt?',
  'Explain how to save water at home.', 'Describe a cosy living room.',
  'How do I remember new words in a language?',
  'Give me advice for studying before an exam.', 'Explain why the sky is blue.',
  'Tell me how plants make food.', 'How can I read more books?',
  'What makes a good teacher?', 'Explain how rain forms.',
  'How do I take useful notes in class?', 'How can I fall asleep faster?',
  'Suggest a short exercise for the morning.',
  'Why is walking good for people?', 'How do I start running?',
  'Tell me how to sit well at a desk.', 'What helps against a sore throat?',
  'How can I drink more water each day?',
  'Give me advice for learning to swim.',
  'How do I make friends in a new city?',
  'Write a birthday wish for my neighbour.', 'How can I apologise to a friend?',
  'Suggest a gift for my grandmother.',
  'What should I say to a nervous speaker?',
  'Tell me how to be a good listener.', 'How do I welcome a new neighbour?',
  'Write an invitation to a picnic.', 'Describe a rainy morning.',
  'Tell me a short story about a cat.', 'How do I take a better photo?',
  'Suggest a game for a long evening.', 'Describe the sound of a forest.',
  'How do I start a small garden?', 'Tell me a short story about a lost key.',
  'Why do people enjoy music?', 'How can I save money on food?',
  'Explain how to choose a strong password.',
  'How do I make my phone battery last longer?',
  'Tell me how to fix a flat bicycle tyre.',
  'What should I look for in a used car?', 'Explain what a budget is.',
)  # fmt: skip

# Kind in scoring.CHECKERS -> how a prompt asks for it -> keywords.
CONSTRAINTS = {
  'max_words': {f'Use at most {n} words.': {'n': n} for n in (15, 20, 25, 30)},
  'min_words': {f'Use at least {n} words.': {'n': n} for n in (20, 25, 30, 35)},
  'sentences': {
    f'Reply in exactly {n} sentences.': {'n': n} for n in (2, 3, 4)
  },
  'paragraphs': {
    'Write exactly two paragraphs with a blank line between them.': {'n': 2}
  },
  'bullets': {
    f'Include exactly {n} bullet points that start with "- ".': {'n': n}
    for n in (2, 3, 4)
  },
  'numbered': {
    f'Include a numbered list of exactly {n} items, as in "1. ".': {'n': n}
    for n in (2, 3, 4)
  },
  'contains': {
    f'Include the words "{a}" and "{b}".': {'words': [a, b]}
    for a, b in (
      ('simple', 'time'),
      ('morning', 'warm'),
      ('small', 'better'),
      ('always', 'friend'),
      ('first', 'water'),
    )
  },
  'avoids': {
    f'Do not use the word "{w}".': {'word': w}
    for w in ('the', 'and', 'you', 'is', 'to')
  },
  'starts_with': {
    f'Start with "{p}".': {'phrase': p}
    for p in ('Good question', 'My advice', 'In my view', 'Here it goes')
  },
  'ends_with': {
    f'End with "{p}"': {'phrase': p}
    for p in ('Have fun!', 'That works well.', 'Hope it helps.', 'Good luck!')
  },
  'lower_case': {'Write all in lower case, without capital letters.': {}},
  'no_commas': {'Do not use any commas.': {}},
  'number': {'Include at least one number in digits.': {}},
  'title': {'Give it a title in double brackets, as in [[Title]].': {}},
  'question': {'End your reply with a question.': {}},
}

# Of each row at most one kind is asked for: they exclude, imply or muddle.
EXCLUSIVE = (
  ('max_words', 'min_words'),
  ('sentences', 'bullets', 'numbered', 'title'),
  ('paragraphs', 'bullets', 'numbered', 'title'),
  ('number', 'numbered'),
  ('starts_with', 'title'),
  ('starts_with', 'ends_with', 'lower_case'),
  ('question', 'ends_with'),
  ('question', 'bullets', 'numbered'),
)

SAMPLE = {'split': 'train', 'size': 8, 'seed': 0}

SPLITS = ('train', 'held_out')
_PATIENCE = 1000  # draws in a row without a new item: the split is used up


def make(*, split: str, size: int, seed: int) -> list[Example]:
  """`size` different items, about half with one constraint and half with two.

  A smaller size gives the first items of a larger one. The metadata hold
  'constraints', a list such as [{'kind': 'max_words', 'n': 20}].

  Args:
    split: 'train' or 'held_out'.

  Raises:
    UserError: an unknown split, or more items than there are.
  """
  if split not in SPLITS:
    raise UserError(
      f'instructions stream: split is {split!r}, expected one of {list(SPLITS)}'
    )
  rng = np.random.default_rng(
    (seed, zlib.crc32(f'instructions/{split}'.encode()))
  )
  held_out = split == 'held_out'
  requests = [r for i, r in enumerate(REQUESTS) if (i % 5 == 4) == held_out]
  out, seen = [], set()
  for index in range(size):
    for _ in range(_PATIENCE):
      prompt, constraints = _draw(rng, requests)
      if prompt not in seen:
        break
    else:
      raise UserError(
        f'instructions stream: no new {split} item at index {index} of size '
        f'{size}; lower the size'
      )
    seen.add(prompt)
    out.append(
      Example(
        id=f'instructions/{split}/{index}',
        messages=(Message('user', prompt),),
        metadata={'constraints': constraints},
      )
    )
  return out


def compatible(a: str, b: str) -> bool:
  """Whether one request may ask for constraints of both kinds."""
  return a != b and not any(a in row and b in row for row in EXCLUSIVE)


def _draw(rng, requests) -> tuple[str, list[dict]]:
  kinds = [_choice(rng, list(CONSTRAINTS))]
  if rng.integers(2):
    others = [k for k in CONSTRAINTS if compatible(k, kinds[0])]
    kinds.append(_choice(rng, others))
  parts, constraints = [_choice(rng, requests)], []
  for kind in kinds:
    asked, keywords = _choice(rng, list(CONSTRAINTS[kind].items()))
    parts.append(asked)
    constraints.append({'kind': kind, **keywords})
  return ' '.join(parts), constraints


def _choice(rng, options):
  return options[rng.integers(len(options))]
