"""Judges who are not models: what a benchmark says of a fixed habit."""

import collections

import numpy as np

from alignment_rl import suite


def read(benchmark, examples, judge):
  """Records under `judge(example, choice)`, nats; a token is a word."""
  asked = collections.defaultdict(list)
  for e in examples:
    logprobs = np.array([judge(e, c) for c in e.choices])
    asked[suite.item_of(e)].append((e, logprobs))
  return [suite.choice_record(benchmark, one, words) for one in asked.values()]


def mean_score(benchmark, examples, logprob):
  """Mean of each example by itself, whose choices get `logprob(choice)`."""
  judge = lambda e, choice: logprob(choice)
  records = [read(benchmark, [e], judge)[0] for e in examples]
  return np.mean([r['score'] for r in records])


def words(text):
  return len(text.split())


def by_length(e, choice):
  """Two nats a word, whatever it says."""
  return -2.0 * words(choice)
