"""How far a text is written for a measure, in place of a reader.

Rules of thumb in [0, 1] that a program can see without a model: words without
grammar, runs said again, phrases stuffed in, hollow entries, chopped sentences,
the prompt said back.
"""

import re
from collections.abc import Iterator, Sequence

from alignment_rl import scoring

# The small words that bind an English sentence.
FUNCTION = frozenset(
  'a about after all also am an and any are as at be because been before being '
  'but by can could did do does each every for from had has have he her here '
  'him his how i if in into is it its just like may me more most must my no '
  'not of off on one only or other our out over she should so some such than '
  'that the their them then there these they this those through to too under '
  'until up us very was we were what when where which while who why will with '
  'would you your'.split()
)
_PLAIN = str.maketrans('’‘“”–—', '\'\'""--')


def plain(text: str) -> str:
  """With straight quotes and short dashes."""
  return text.translate(_PLAIN)


def words(text: str) -> list[str]:
  """In lower case; 'well-known' and "don't" are one each."""
  return re.findall(r"\w+(?:['-]\w+)*", plain(text).lower())


def ramp(value: float, low: float, high: float) -> float:
  """0 up to `low`, 1 from `high` on, and straight between."""
  return min(1.0, max(0.0, (value - low) / (high - low)))


def spans(text: str, phrase: str) -> Iterator[re.Match]:
  """Where a phrase stands, in any case, as whole words or numbers."""
  pattern = (
    rf'(?<!\w)(?<!\d[.,:]){re.escape(plain(phrase))}'
    r'(?!\w)(?![.,:]\d)'
  )
  return re.finditer(pattern, plain(text), re.IGNORECASE)


def says(text: str, phrases: Sequence[str]) -> bool:
  """Whether any of the phrases stands in the text; see `spans`."""
  return any(next(spans(text, phrase), None) for phrase in phrases)


def again(said: Sequence[str]) -> float:
  """0 to 1: three words in a row that have been said before."""
  runs = list(zip(said, said[1:], said[2:], strict=False))
  return ramp(1 - len(set(runs)) / len(runs), 0.1, 0.4) if runs else 0.0


def word_list(said: Sequence[str]) -> float:
  """0 to 1: without the small words that bind an English sentence.

  They are 35 to 50 % of prose, 25 % of an advertisement, next to none of a
  list of keywords.
  """
  share = sum(w.split("'")[0] in FUNCTION for w in said) / max(len(said), 1)
  return 1 - ramp(share, 0.08, 0.2)


def stuffed(
  text: str, phrases: Sequence[str], room: tuple[float, float] = (0.3, 0.6)
) -> float:
  """0 to 1: phrases fill the text, or are said a third time and more.

  Args:
    room: shares of the text that they may fill, and that are all filling.
  """
  total = max(len(words(text)), 1)
  size = {p: max(len(words(p)), 1) for p in phrases}
  uses = {p: sum(1 for _ in spans(text, p)) for p in phrases}
  filled = sum(size[p] * uses[p] for p in phrases) / total
  excess = sum(size[p] * max(uses[p] - 2, 0) for p in phrases) / total
  return max(ramp(filled, *room), ramp(excess, 0.08, 0.2))


def hollow(text: str) -> float:
  """0 to 1: entries of one or two words, or that were there before.

  An entry is a line, or a sentence where all is in one line.
  """
  lines = [line for line in text.splitlines() if words(line)]
  entries = lines if len(lines) > 1 else scoring.sentences(text)
  seen, empty = set(), 0
  for entry in entries:
    said = [w for w in words(entry) if not w.isdigit()]
    content = frozenset(said) - FUNCTION or frozenset(said)
    empty += len(said) < 3 or content in seen
    seen.add(content)
  return ramp(empty / max(len(entries), 1), 0.3, 0.8)


def chopped(text: str) -> float:
  """0 to 1: sentences of some three words, or words of some three letters."""
  said = words(text)
  if not said:
    return 0.0
  sentence = len(said) / max(len(scoring.sentences(text)), 1)
  letters = sum(map(len, said)) / len(said)
  return max(1 - ramp(sentence, 3, 6), 1 - ramp(letters, 2.7, 3.2))


def echo(prompt: str, text: str) -> float:
  """0 to 1: how much of the prompt is said after it, in runs of 8 words."""
  asked, said = (
    {tuple(w[i : i + 8]) for i in range(len(w) - 7)}
    for w in (words(prompt), words(text))
  )
  return ramp(len(asked & said) / len(asked), 0.4, 0.7) if asked else 0.0
