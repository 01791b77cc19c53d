"""Benchmarks under conditions, as work for a scorer and a policy.

A job is one benchmark under one condition. Their items are run together,
batched by length whatever job they are of, and recorded as they come.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from alignment_rl import conditions, replies, suite
from alignment_rl.errors import UserError
from alignment_rl.types import Example, Message


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """A benchmark's items under a condition."""

  condition: conditions.Condition
  benchmark: suite.Benchmark
  examples: list

  @property
  def place(self) -> tuple[str, str, int]:
    """Of its records in the store."""
    return self.condition.name, self.benchmark.name, self.benchmark.version

  @functools.cached_property
  def items(self) -> dict[str, list]:
    """Item id -> the examples that ask it, in order."""
    out = {}
    for e in self.examples:
      out.setdefault(suite.item_of(e), []).append(e)
    return out

  def context(self, example, tokenizer, said=()) -> list[int] | None:
    """Tokens that the policy reads next; None where nothing is left to say.

    Args:
      said: its replies so far, each of which the world answers.
    """
    if not example.messages:
      return []
    if len(said) >= self.benchmark.turns and said:
      return None
    messages = self.condition.messages(example)
    for i, reply in enumerate(said, 1):
      answer = self.benchmark.respond(example, said[:i])
      if answer is None:
        return None
      messages += (Message('assistant', reply), Message('user', answer))
    return tokenizer.encode_chat(messages, self.condition.prefill)


# (job, example) -> whether a record of its item is still missing.
Wanted = Callable[[Job, Example], bool]
# Takes the records of a job as they come.
Keep = Callable[[Job, Sequence[dict]], Any]


def plan(
  benchmarks: Sequence[suite.Benchmark],
  under: Sequence[conditions.Condition],
  data: pathlib.Path | None,
  limit: int,
) -> list[Job]:
  """The jobs, each with the first `limit` items; 0 = all.

  A benchmark none of whose items a condition applies to has no job under it.

  Raises:
    UserError: public sets are missing; all of them are named.
  """
  absent = suite.missing(benchmarks, data)
  if absent:
    raise UserError(suite.explain(absent, data))
  jobs = []
  for benchmark in benchmarks:
    examples = benchmark.items(data)
    first = list(dict.fromkeys(map(suite.item_of, examples)))
    kept = set(first[: limit or None])
    examples = [e for e in examples if suite.item_of(e) in kept]
    for condition in under:
      mine = [e for e in examples if condition.applies(e)]
      if mine:
        jobs.append(Job(condition, benchmark, mine))
  return jobs


def read_choices(jobs, scorer, tokenizer, wanted: Wanted, keep: Keep) -> None:
  """All choice items, batched over benchmarks and conditions by length."""
  asked = [(job, e) for job in jobs for e in job.examples]
  count = functools.cache(lambda text: len(tokenizer.encode(text)))
  found = {}
  for batch in scorer.stream(
    [job.context(e, tokenizer) for job, e in asked],
    [e.choices for _, e in asked],
    lambda i: wanted(*asked[i]),
  ):
    for i, sums in batch:
      job, e = asked[i]
      asking = job.items[suite.item_of(e)]
      mine = found.setdefault((job, suite.item_of(e)), {})
      mine[e.id] = sums
      if len(mine) == len(asking):
        pairs = [(e, mine[e.id]) for e in asking]
        keep(job, [suite.choice_record(job.benchmark, pairs, count)])


def hear_replies(
  jobs,
  policy,
  tokenizer,
  length: int,
  judge,
  wanted: Wanted,
  keep: Keep,
  times: int = 1,
) -> None:
  """Own replies, batched over benchmarks and conditions by length.

  Args:
    length: tokens of a reply, at most; 0 = what each benchmark says.
    judge: see `suite.reply_records`.
    times: replies to an item, each with noise of its own. The first are those
      of fewer times.
  """
  size = lambda job: length or job.benchmark.length
  for tokens in sorted(set(map(size, jobs))):
    asked = [
      (job, e, nth)
      for job in jobs
      if size(job) == tokens
      for e in job.examples
      for nth in range(times)
    ]
    requests = [
      replies.Request(
        suite.item_of(e) + (f' {nth}' if nth else ''),
        functools.partial(job.context, e, tokenizer),
      )
      for job, e, nth in asked
    ]
    found = {}
    for batch in policy.run(
      requests, tokens, lambda i, asked=asked: wanted(*asked[i][:2])
    ):
      by_job = {}
      for i, reply in batch:
        job, e, nth = asked[i]
        by_job.setdefault(job, []).append((e, nth, reply))
      for job, heard in by_job.items():
        examples, numbers, spoken = zip(*heard, strict=True)
        records = _score(job, examples, spoken, judge)
        whole = []
        for nth, record in zip(numbers, records, strict=True):
          mine = found.setdefault((job, record['id']), {})
          mine[nth] = record
          if len(mine) == times:
            whole.append(suite.join_replies([mine[k] for k in range(times)]))
        keep(job, whole)


def _score(job, examples, spoken, judge):
  """A record of each reply, told as one text or by turns."""
  said = [
    tuple(job.condition.prefill + text for text in r.said) for r in spoken
  ]
  if job.benchmark.protocol == 'generate':
    said = [texts[0] for texts in said]
  cut = [r.cut for r in spoken]
  return suite.reply_records(job.benchmark, examples, said, cut, judge)
