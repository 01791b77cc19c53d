"""Linear probes: how far something shallow gets at telling replies apart.

A trait data set is worth optimising only where shallow features fail on it: a
reply's length, its words, or frozen hidden states that never saw the prompt.
Each probe is fitted on some groups of pairs and read on the group left out.
Needs the extra `data` (scikit-learn).
"""

import collections
import math
import re
from collections.abc import Sequence

import numpy as np

from alignment_rl import config
from alignment_rl.errors import UserError


def left_out_wins(
  better: np.ndarray,
  worse: np.ndarray,
  groups: Sequence[str],
  *,
  ridge: float = 0.03,
  only: str | None = None,
) -> np.ndarray:
  """A linear score, fitted on the other groups, on the pairs of each group.

  Logistic regression on differences, without intercept, so that it is a
  Bradley-Terry model; features are scaled to unit spread on the fitted pairs.

  Args:
    better: float [n, features], as `worse`.
    groups: which group a pair belongs to; two or more.
    ridge: penalty per pair on the squared weights.
    only: the one group to leave out; the wins of the others are NaN.

  Returns:
    float64 [n]: 1 where the better reply scores higher, 0.5 for a tie, else 0.

  Raises:
    UserError: fewer than two groups.
  """
  linear = config.need('sklearn.linear_model', 'data')
  threads = config.need('threadpoolctl', 'data')
  difference, wins = better - worse, np.full(len(groups), np.nan)
  for group, mine in _left_out(groups).items():
    if only not in (None, group):
      continue
    scale = np.concatenate([better[~mine], worse[~mine]]).std(0) + 1e-6
    x = difference[~mine] / scale
    fit = linear.LogisticRegression(
      C=1 / (ridge * 2 * len(x)), fit_intercept=False, max_iter=2000
    )
    # On busy cores its threads wait for each other: 45 s, and 3 s with one.
    with threads.threadpool_limits(1):
      # Both orders of a pair, or there would be one class only.
      fit.fit(np.concatenate([x, -x]), np.repeat([1, 0], len(x)))
    margin = (difference[mine] / scale) @ fit.coef_[0]
    # Equal replies differ by rounding alone.
    wins[mine] = (np.sign(np.where(abs(margin) < 1e-9, 0, margin)) + 1) / 2
  return wins


def word_features(
  better: Sequence[str], worse: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """tf-idf of words and neighbouring pairs of words: two float [n, terms]."""
  text = config.need('sklearn.feature_extraction.text', 'data')
  vectorizer = text.TfidfVectorizer(
    sublinear_tf=True, ngram_range=(1, 2), min_df=2,
    token_pattern=r"[\w']+|[!?:;,.]",
  )  # fmt: skip
  found = vectorizer.fit_transform([*better, *worse]).toarray()
  return found[: len(better)], found[len(better) :]


def length_wins(
  better: Sequence[str], worse: Sequence[str], groups: Sequence[str]
) -> dict[str, np.ndarray]:
  """'The longer one' or 'the shorter one', whichever the other groups say.

  Where the other groups say neither, it is a tie.

  Returns:
    {'words' | 'characters': float64 [n]}, as `left_out_wins`.

  Raises:
    UserError: fewer than two groups.
  """
  out = {}
  for name, size in (('words', lambda s: len(s.split())), ('characters', len)):
    longer = np.array(
      [
        (np.sign(size(b) - size(w)) + 1) / 2
        for b, w in zip(better, worse, strict=True)
      ]
    )
    wins = np.zeros(len(longer))
    for mine in _left_out(groups).values():
      direction = np.sign(longer[~mine].mean() - 0.5)
      wins[mine] = 0.5 + direction * (longer[mine] - 0.5)
    out[name] = wins
  return out


def _left_out(groups) -> dict[str, np.ndarray]:
  """Each group, and which pairs are its own: bool [n]."""
  names = sorted(set(groups))
  if len(names) < 2:
    raise UserError(
      f'the pairs are of the groups {names}, expected two or more: a probe is '
      'read on one group and fitted on the others'
    )
  return {name: np.array([g == name for g in groups]) for name in names}


def telling_words(
  better: Sequence[str], worse: Sequence[str], most: int = 20
) -> list[tuple[str, int, int]]:
  """Words that one side holds and its pair does not, most lopsided first.

  Returns:
    (word, pairs where only the better reply has it, only the worse), by the
    size of the difference in standard deviations of a fair coin.
  """
  only = [collections.Counter(), collections.Counter()]
  words = lambda s: set(re.findall(r"[a-z']+|[!?:;]", s.lower()))
  for b, w in zip(better, worse, strict=True):
    only[0].update(words(b) - words(w))
    only[1].update(words(w) - words(b))
  spread = {
    w: abs(only[0][w] - only[1][w]) / math.sqrt(only[0][w] + only[1][w])
    for w in only[0].keys() | only[1].keys()
  }
  first = sorted(spread, key=lambda w: (-spread[w], w))[:most]
  return [(w, only[0][w], only[1][w]) for w in first]
