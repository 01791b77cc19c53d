"""What a benchmark is, where all are found, and the two protocols.

choice: the candidate replies' log-likelihoods become probabilities; the score
is that of the aligned reply, continuous, so that a small paired change shows.
generate: the policy replies and a program or a reward scores the text.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from alignment_rl import config as config_lib
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Judge


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """One evaluation; scores in [0, 1], higher is better aligned.

  Attributes:
    name: unique, '<area>/<name>'.
    area: the table it is shown in.
    protocol: 'choice' or 'generate'.
    load: -> its items, in a fixed order. A choice item's first choice is the
      aligned one.
    score: generate only: (examples, completions, judge) -> float32 [n], NaN =
      unscored.
    normalise: choice only: whether a choice's log-likelihood counts in sum, per
      token or per byte.
    chance: score of an answer that knows nothing.
    version: raised when items or scoring change.
    source: data, licence and citation, in words.
    demo: for generate, an example, a right and a wrong answer: its own test.
  """

  name: str
  area: str
  protocol: str
  load: Callable[[], Sequence[Example]]
  score: Callable[..., np.ndarray] | None = None
  normalise: str = 'sum'
  chance: float = 0.5
  version: int = 1
  source: str = ''
  demo: Callable[[], tuple[Example, str, str]] | None = None


def discover() -> dict[str, Benchmark]:
  """Every benchmark of every file in `benchmarks/`, by name."""
  out = {}
  for file in config_lib.plugins('benchmarks'):
    for benchmark in config_lib.load('benchmarks', file).BENCHMARKS:
      if benchmark.name in out:
        raise ValueError(f'two benchmarks are called {benchmark.name!r}')
      out[benchmark.name] = benchmark
  return out


def select(names: str) -> list[Benchmark]:
  """'all', or names and areas separated by commas.

  Raises:
    UserError: a name is neither a benchmark nor an area.
  """
  have = discover()
  if names == 'all':
    return list(have.values())
  out = {}
  for name in names.split(','):
    found = [b for b in have.values() if name in (b.name, b.area)]
    if not found:
      raise UserError(
        f'unknown benchmark {name!r}; have {sorted(have)}, or an area of '
        f'{sorted({b.area for b in have.values()})}, or all'
      )
    out |= {b.name: b for b in found}
  return list(out.values())


def choose(
  benchmark: Benchmark,
  examples: Sequence[Example],
  judge: Judge,
  render: Callable[[Example], str],
  count_tokens: Callable[[str], int],
  progress: Callable[[int], None] = lambda done: None,
) -> list[dict]:
  """The choice protocol.

  Args:
    judge: reads with the policy that is evaluated.
    render: the prompt as text, where the reply begins.
    count_tokens: length of a choice.

  Returns:
    A record per item: score (probability of the aligned choice), accuracy (1 if
    it is the likeliest), and the log-likelihoods in nats, summed and per token.
  """
  found = judge.logprobs(
    [render(e) for e in examples], [e.choices for e in examples], progress
  )
  out = []
  for example, sums in zip(examples, found, strict=True):
    tokens = np.array([count_tokens(c) for c in example.choices])
    size = {
      'sum': np.ones(len(sums)),
      'token': tokens,
      'byte': np.array([len(c.encode()) for c in example.choices]),
    }[benchmark.normalise]
    logits = sums.astype(np.float64) / size
    probs = np.exp(logits - logits.max())
    probs /= probs.sum()
    out.append(
      {
        'id': example.id,
        'score': float(probs[0]),
        'accuracy': float(logits[0] > logits[1:].max()),
        'logprobs': [round(float(x), 4) for x in sums],
        'tokens': tokens.tolist(),
        'choices': list(example.choices),
      }
    )
  return out


def generate(
  benchmark: Benchmark,
  examples: Sequence[Example],
  completions: Sequence[str],
  judge: Judge | None,
) -> list[dict]:
  """The generate protocol: a record per item with its score and text."""
  scores = benchmark.score(examples, completions, judge=judge)
  return [
    {'id': e.id, 'score': None if np.isnan(s) else float(s), 'text': text}
    for e, text, s in zip(examples, completions, scores, strict=True)
  ]


def summarise(benchmark: Benchmark, records: Sequence[dict]) -> dict:
  """One line of results.jsonl for a benchmark, from its records."""
  scores = [r['score'] for r in records if r['score'] is not None]
  line = {
    'benchmark': benchmark.name,
    'area': benchmark.area,
    'protocol': benchmark.protocol,
    'version': benchmark.version,
    'n': len(scores),
    'unscored': len(records) - len(scores),
    'score': float(np.mean(scores)) if scores else None,
    'chance': benchmark.chance,
    'metric': 'reward or program score',
  }
  if benchmark.protocol == 'choice':
    line['metric'] = (
      f'probability of the aligned reply, per {benchmark.normalise}'
    )
    line['accuracy'] = float(np.mean([r['accuracy'] for r in records]))
  return line
