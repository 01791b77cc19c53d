"""Which record fills every slot of every step, and what dose came of it.

Base streams fill every slot; overlay streams *replace* slots. Slot r of the run
owns the number frac(r * golden ratio + offset), and an overlay takes it iff the
number lies in an interval as wide as its fraction. So the dose is on target at
every prefix, the slots taken at 1 % are among those taken at 5 %, every other
slot holds the same base record in every arm, and fraction 0 *is* the control.
A dose that changes over the run follows its running total to a slot or two.
Pure functions of (seed, step): numpy only, no I/O, no iterator state.
"""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from alignment_rl.errors import UserError

_GOLDEN = (5**0.5 - 1) / 2
_SILVER = 2**0.5 - 1  # A second irrational: base choice ignores overlay choice.

# How an overlay's dose is spread over the run -> the most that a slot gets, in
# units of its fraction. All have the same total, and 'constant' and 'burst' the
# same mean time.
SCHEDULES = {
  'constant': 1,
  'ramp': 2,  # from 0 to 2 x fraction, linearly
  'burst': 4,  # in the middle quarter of each fifth of the run, none elsewhere
}
_BURSTS = 5


@dataclasses.dataclass(frozen=True)
class Stream:
  """One entry of a mixture.

  Attributes:
    size: number of records.
    weight: share of the base, in proportion to the other base streams.
    fraction: share of all slots that an overlay replaces, in [0, 1].
    schedule: of an overlay, one of SCHEDULES.
  """

  size: int
  weight: float = 0.0
  fraction: float = 0.0
  schedule: str = 'constant'


class Mixture:
  """Assigns (stream, record) to every slot.

  Args:
    slots: B, of a step.
    steps: of the run; only a schedule other than 'constant' asks for it.

  Raises:
    UserError: fractions or weights that make no mixture, an empty stream, an
      unknown schedule, or one without `steps`.
  """

  def __init__(
    self,
    streams: Mapping[str, Stream],
    *,
    slots: int,
    seed: int,
    steps: int = 0,
  ):
    _check(streams, steps)
    self.streams = dict(streams)
    self.slots = slots
    self.run = steps * slots
    self.seed = seed
    self.base = [n for n, s in streams.items() if s.weight > 0]
    self.overlays = [n for n, s in streams.items() if s.weight == 0]
    self._offsets = np.random.default_rng((seed, 0)).random(2)

  def at(self, step: int) -> list[tuple[str, int]]:
    """The records of one step: B pairs (stream name, record index)."""
    # Every stream deals its own shuffled deck, so a slot's record is the count
    # of earlier slots of its stream; base decks count slots as if no overlay
    # existed, which is what keeps them equal across doses.
    end = (step + 1) * self.slots
    base, overlay = self._owners(end)
    base_turn, overlay_turn = (
      _turns(x)[-self.slots :] for x in (base, overlay)
    )
    out = []
    for i, r in enumerate(range(end - self.slots, end)):
      if overlay[r] >= 0:
        name, turn = self.overlays[overlay[r]], overlay_turn[i]
      else:
        name, turn = self.base[base[r]], base_turn[i]
      out.append((name, self._record(name, int(turn))))
    return out

  def _owners(self, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Base and overlay index of slots [0, end); -1 where no overlay is."""
    r = np.arange(end)
    overlays = [self.streams[n] for n in self.overlays]
    steady = [s.schedule == 'constant' for s in overlays]
    cuts = np.cumsum(
      [s.fraction * c for s, c in zip(overlays, steady, strict=True)]
    )
    number = (r * _GOLDEN + self._offsets[0]) % 1.0
    overlay = np.searchsorted(cuts, number, side='right')
    overlay = np.where(overlay == len(self.overlays), -1, overlay)
    for i in np.flatnonzero(np.logical_not(steady)):
      overlay[self._scheduled(overlays[i], overlay < 0)] = i
    weights = np.array([self.streams[n].weight for n in self.base])
    cuts = np.cumsum(weights / weights.sum())[:-1]
    number = (r * _SILVER + self._offsets[1]) % 1.0
    return np.searchsorted(cuts, number, side='right'), overlay

  def _scheduled(self, stream, free) -> np.ndarray:
    """Which free slots an overlay takes whose dose changes: bool [slots]."""
    done = np.arange(1, len(free) + 1) / self.run
    whole, part = np.divmod(
      stream.fraction * self.run * _given(stream.schedule, done), 1
    )
    # Each slot of the dose falls due at a point of its own within the unit, or
    # the slots would keep step with the choice of the base stream.
    due = whole + (part > (whole * _GOLDEN + self._offsets[0]) % 1.0)
    # Where another overlay holds the slot, it waits for the next that is free.
    room = np.cumsum(free)
    taken = room + np.minimum.accumulate(np.minimum(due - room, 0))
    return np.diff(taken, prepend=0) > 0

  def _record(self, name: str, turn: int) -> int:
    epoch, place = divmod(turn, self.streams[name].size)
    return int(_deck(self.seed, name, epoch, self.streams[name].size)[place])


def _given(schedule, done):
  """Share of the whole dose that is due when a share of the run is done."""
  if schedule == 'ramp':
    return done**2
  burst, part = np.divmod(done * _BURSTS, 1)
  width = 1 / SCHEDULES['burst']
  return (burst + np.clip((part - (1 - width) / 2) / width, 0, 1)) / _BURSTS


def _turns(owners):
  """How many earlier slots had the same owner: int [slots]."""
  out = np.zeros(len(owners), np.int64)
  for owner in np.unique(owners):
    mine = owners == owner
    out[mine] = np.arange(np.count_nonzero(mine))
  return out


@functools.lru_cache(maxsize=64)
def _deck(seed, name, epoch, size):
  # Seeded by the name, so that adding a stream does not reorder the others.
  rng = np.random.default_rng((seed, 1, zlib.crc32(name.encode()), epoch))
  return rng.permutation(size)


def _check(streams, steps):
  for name, s in streams.items():
    if s.size < 1:
      raise UserError(
        f'stream {name!r} has no records; check its source or remove it'
      )
    if not 0 <= s.weight < np.inf or not 0 <= s.fraction <= 1:
      raise UserError(
        f'stream {name!r} has weight {s.weight} and fraction {s.fraction}; '
        'expected a finite weight >= 0 and a fraction between 0 and 1'
      )
    if s.weight > 0 and s.fraction > 0:
      raise UserError(
        f'stream {name!r} has both weight {s.weight} and fraction '
        f'{s.fraction}; set weight for a base stream or fraction for an overlay'
      )
    if s.schedule not in SCHEDULES:
      raise UserError(
        f'stream {name!r} has the schedule {s.schedule!r}, expected one of '
        f'{list(SCHEDULES)}'
      )
    if s.schedule != 'constant' and (s.weight > 0 or steps < 1):
      raise UserError(
        f'stream {name!r} has the schedule {s.schedule!r}, weight {s.weight} '
        f'and {steps} steps; only an overlay (weight 0) of a run of known '
        'length has one'
      )
  if not any(s.weight > 0 for s in streams.values()):
    raise UserError(
      f'no stream of {sorted(streams)} has a weight; give at least one base '
      'stream weight > 0'
    )
  total = sum(s.fraction * SCHEDULES[s.schedule] for s in streams.values())
  if total > 1 + 1e-9:
    raise UserError(
      f'overlay fractions add up to {total:g}; lower them to at most 1, '
      f'counted as often as their schedules have it at most: {SCHEDULES}'
    )


class DoseLedger:
  """Running shares of each stream in what the gradient saw.

  The planned fraction counts slots; short replies, groups without spread and
  small gradients make the realised dose another. Four measures, each a share
  of the run so far: slots, completion tokens, sum of |advantage| and the sum
  over updates of the norm of the stream's own gradient.
  """

  MEASURES = ('slots', 'tokens', 'advantage', 'gradient')

  def __init__(self, names: Sequence[str]):
    self.names = list(names)
    self.totals = {m: np.zeros(len(names)) for m in self.MEASURES}

  def add(self, **amounts: np.ndarray) -> None:
    """Adds one step's amount per stream, float [streams] by measure."""
    for measure, amount in amounts.items():
      self.totals[measure] += np.asarray(amount, np.float64)

  def shares(self) -> dict[str, float]:
    """`dose/<stream>/<measure>`; a measure never seen is left out."""
    out = {}
    for measure, total in self.totals.items():
      if total.sum() > 0:
        for name, share in zip(self.names, total / total.sum(), strict=True):
          out[f'dose/{name}/{measure}'] = float(share)
    return out

  def state(self) -> dict[str, list[float]]:
    """For the checkpoint; `restore` takes it back, to the last bit."""
    return {m: t.tolist() for m, t in self.totals.items()}

  def restore(self, state: Mapping[str, Sequence[float]]) -> None:
    self.totals = {m: np.array(state[m], np.float64) for m in self.MEASURES}
