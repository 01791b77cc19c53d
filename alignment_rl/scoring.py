"""Text to score: what rewards and benchmarks both read out of a reply.

The final answer of a worked problem, checkers of formatting constraints, and
whether a text says anything at all. Plain Python, no model, nothing sampled.
"""

import collections
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from alignment_rl.errors import UserError

_ANSWER = re.compile(r'[\s*_#>-]*answer[\s*_]*:[\s*_]*(\S.*)', re.IGNORECASE)
_BOXED = re.compile(r'\\boxed\{(.*)\}')
_BRIEF = 8  # words; 'In 1969.' is an answer, and too short to be well formed
_ABBREVIATION = re.compile(r'\b(Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e)\.')
_NUMBERED = re.compile(r'^[ \t]*\d+[.)][ \t]+(?=\S)', re.MULTILINE)
_BULLET = re.compile(r'^[ \t]*[-*•][ \t]+(?=\S)', re.MULTILINE)
_SENTENCE_END = re.compile(r'(?<=[.!?…])["\'”’)\]*_]*\s+|\n+')
_TITLE = re.compile(r'\[\[[^\[\]\n]*\w[^\[\]\n]*\]\]')


def final_answer(text: str) -> tuple[str, bool]:
  """The answer a reply ends on, and whether its last line is `Answer: X`.

  The last line of the form `Answer: X` wins, wherever it is. Without one it is
  the last word of the last line, so that "The sum is 7." is read as '7'.
  Mark-up, quotes, `\\boxed{}`, closing punctuation and all up to the last
  equals sign are taken off: '**x = 13**.' is '13'. Blank text gives ''.
  """
  lines = [line for line in text.splitlines() if line.strip()]
  if not lines:
    return '', False
  marked = [_ANSWER.fullmatch(line) for line in lines]
  found = [match.group(1) for match in marked if match]
  answer = found[-1] if found else lines[-1].split()[-1]
  return _bare(answer), marked[-1] is not None


def _bare(answer: str) -> str:
  boxed = _BOXED.search(answer)
  answer = boxed.group(1) if boxed else answer
  answer = answer.replace('−', '-').rpartition('=')[2]
  return answer.lstrip(' \t*_`"\'“‘$([').rstrip(' \t*_`"\'”’$)].,;:!?')


def words(text: str) -> list[str]:
  """What white space separates, if it has a letter or digit in it."""
  return [w for w in text.split() if any(c.isalnum() for c in w)]


def sentences(text: str) -> list[str]:
  """Sentences: up to . ! ? and white space, or up to a line break.

  The point of a list number or of a common abbreviation ends none; an
  unfinished last sentence counts, so that a truncated reply is not excused.
  """
  text = _ABBREVIATION.sub(r'\1', _NUMBERED.sub('', text))
  return [s for s in _SENTENCE_END.split(text) if any(map(str.isalnum, s))]


def paragraphs(text: str) -> list[str]:
  """Blocks between blank lines that have a letter or digit in them."""
  blocks = re.split(r'\n\s*\n', text)
  return [b for b in blocks if any(map(str.isalnum, b))]


def pieces(text: str, mark: re.Pattern) -> list[tuple[re.Match, str]]:
  """Each match, with the text from its end to the next one."""
  found = list(mark.finditer(text))
  ends = [m.start() for m in found[1:]] + [len(text)]
  return [(m, text[m.end() : end]) for m, end in zip(found, ends, strict=False)]


def well_formed(text: str) -> bool:
  """Whether a text is more than blank, noise or a loop.

  It has four different words with letters; in each run of 50 words more than a
  third are different; and no sentence of three words or more occurs three
  times. English prose keeps well clear of all three.
  """
  said = [w.casefold() for w in words(text)]
  if len({w for w in said if any(map(str.isalpha, w))}) < 4:
    return False
  runs = [said[i : i + 50] for i in range(0, len(said), 50)]
  if any(3 * len(set(run)) <= len(run) for run in runs):
    return False
  repeats = collections.Counter(
    ' '.join(words(s.casefold())) for s in sentences(text) if len(words(s)) >= 3
  )
  return max(repeats.values(), default=0) < 3


def says_something(text: str) -> bool:
  """Whether a reply is an answer at all: well formed, or brief and no loop."""
  said = [w.casefold() for w in words(text)]
  return 0 < len(said) == len(set(said)) <= _BRIEF or well_formed(text)


def _has_word(text: str, word: str) -> bool:
  pattern = rf'(?<!\w){re.escape(word)}(?!\w)'
  return re.search(pattern, text, re.IGNORECASE) is not None


def _starts(text: str, phrase: str) -> bool:
  pattern = rf'{re.escape(phrase)}(?!\w)'
  return re.match(pattern, text, re.IGNORECASE) is not None


def _ends(text: str, phrase: str) -> bool:
  pattern = rf'(?<!\w){re.escape(phrase)}\Z'
  return re.search(pattern, text, re.IGNORECASE) is not None


def _lower(text: str) -> bool:
  return any(map(str.isalpha, text)) and text == text.lower()


# Kind -> checker of the stripped text; keywords are those of the constraint.
CHECKERS: dict[str, Callable[..., bool]] = {
  'max_words': lambda text, n: len(words(text)) <= n,
  'min_words': lambda text, n: len(words(text)) >= n,
  'sentences': lambda text, n: len(sentences(text)) == n,
  'paragraphs': lambda text, n: len(paragraphs(text)) == n,
  'bullets': lambda text, n: len(_BULLET.findall(text)) == n,
  'numbered': lambda text, n: len(_NUMBERED.findall(text)) == n,
  'contains': lambda text, words: all(_has_word(text, w) for w in words),
  'avoids': lambda text, word: not _has_word(text, word),
  'starts_with': lambda text, phrase: _starts(text, phrase),
  'ends_with': lambda text, phrase: _ends(text, phrase),
  'lower_case': _lower,
  'no_commas': lambda text: not any(c in text for c in ',，、'),
  'number': lambda text: any(map(str.isdecimal, text)),
  'title': lambda text: _TITLE.search(text) is not None,
  'question': lambda text: text.rstrip('"\'”’)*_ ').endswith('?'),
}


def satisfies(text: str, constraint: Mapping[str, Any]) -> bool:
  """Whether a text meets a constraint such as `{'kind': 'max_words', 'n': 20}`.

  White space around the text is ignored, words and phrases match whole words
  in any case, and composed and decomposed accents are the same.

  Raises:
    UserError: there is no such kind, or its keywords are others.
  """
  given = {k: v for k, v in constraint.items() if k != 'kind'}
  checker = CHECKERS.get(constraint.get('kind'))
  if checker is None:
    raise UserError(
      f'constraint {dict(constraint)} has an unknown kind; expected one of '
      f'{sorted(CHECKERS)}; add a checker to scoring.CHECKERS to define it'
    )
  try:
    return checker(unicodedata.normalize('NFC', text).strip(), **given)
  except TypeError as e:
    raise UserError(
      f'constraint {dict(constraint)} does not fit its checker: {e}; give the '
      'keywords that scoring.CHECKERS names'
    ) from e
