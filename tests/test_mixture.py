"""Which record fills which slot: doses, pairing of arms, and the ledger."""

import itertools
import json

import numpy as np
import pytest

from alignment_rl.errors import UserError
from alignment_rl.mixture import SCHEDULES, DoseLedger, Mixture, Stream

DOSES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5)
BASE = {'a': Stream(50, weight=3.0), 'b': Stream(17, weight=1.0)}


def plan(streams, slots, seed=0):
  """The first `slots` slots of a run, as one large step."""
  return Mixture(streams, slots=slots, seed=seed).at(0)


def dosed(fraction, size=9):
  return BASE | {'traits': Stream(size, fraction=fraction)}


def taken(slots, name='traits'):
  return np.array([owner == name for owner, _ in slots])


def records(slots, name):
  return [record for owner, record in slots if owner == name]


@pytest.mark.parametrize('dose', DOSES)
def test_dose_is_within_four_slots_at_every_prefix(dose):
  prefix = np.arange(1, 1201)
  for seed in range(25):
    count = np.cumsum(taken(plan(dosed(dose), 1200, seed)))
    assert np.abs(count - dose * prefix).max() <= 4, seed


def test_dose_is_within_four_slots_after_a_long_run():
  for seed in range(3):
    count = np.cumsum(taken(plan(dosed(0.01), 10_000, seed)))
    assert np.abs(count - 0.01 * np.arange(1, 10_001)).max() <= 4, seed


def test_each_of_two_overlays_has_its_own_dose():
  streams = dosed(0.05) | {'other': Stream(5, fraction=0.2)}
  prefix = np.arange(1, 1201)
  for seed in range(20):
    slots = plan(streams, 1200, seed)
    for name, dose in (('traits', 0.05), ('other', 0.2)):
      off = np.abs(np.cumsum(taken(slots, name)) - dose * prefix)
      assert off.max() <= 4, (seed, name)


def test_base_streams_share_in_proportion_to_their_weights():
  # Weights 3 and 1: three quarters of the slots, at every prefix.
  prefix = np.arange(1, 1201)
  for seed in range(20):
    count = np.cumsum(taken(plan(BASE, 1200, seed), 'a'))
    assert np.abs(count - 0.75 * prefix).max() <= 4, seed
  scaled = {'a': Stream(50, weight=30.0), 'b': Stream(17, weight=10.0)}
  assert plan(scaled, 300) == plan(BASE, 300)


def test_an_overlay_replaces_base_streams_in_their_own_proportion():
  # Of the 400 slots taken at 20 % of 2000, 300 were a's and 100 were b's.
  # Where the two sequences locked, all would come from one of them.
  for seed in range(10):
    control, arm = plan(BASE, 2000, seed), plan(dosed(0.2), 2000, seed)
    from_a = np.count_nonzero(taken(arm) & taken(control, 'a'))
    assert abs(from_a - 300) <= 10, seed


@pytest.mark.parametrize('low, high', list(itertools.pairwise(DOSES)))
def test_slots_of_a_low_dose_are_a_subset_of_those_of_a_higher(low, high):
  for seed in range(10):
    few = taken(plan(dosed(low), 1000, seed))
    many = taken(plan(dosed(high), 1000, seed))
    assert not np.any(few & ~many), seed


def test_untouched_slots_are_identical_across_arms():
  for seed in range(5):
    control = plan(BASE, 1000, seed)
    for dose in DOSES:
      arm = plan(dosed(dose), 1000, seed)
      replaced = taken(arm)
      assert replaced.any()
      for r in np.flatnonzero(~replaced):
        assert arm[r] == control[r], (seed, dose, r)


def test_fraction_zero_is_the_control():
  assert plan(dosed(0.0), 1000) == plan(BASE, 1000)


def test_fraction_one_takes_every_slot():
  assert taken(plan(dosed(1.0), 1000)).all()


def test_a_step_does_not_depend_on_what_was_asked_before():
  streams, steps = dosed(0.1), [7, 0, 3, 3, 29, 1]
  asked = Mixture(streams, slots=8, seed=4)
  for step in steps:
    fresh = Mixture(streams, slots=8, seed=4)
    assert asked.at(step) == fresh.at(step)


def test_slots_are_those_of_the_run_whatever_a_step_holds():
  whole = plan(dosed(0.1), 240, seed=4)
  for slots in (1, 8, 60):
    mixture = Mixture(dosed(0.1), slots=slots, seed=4)
    steps = [mixture.at(step) for step in range(240 // slots)]
    assert all(len(step) == slots for step in steps)
    assert list(itertools.chain(*steps)) == whole


def test_seeds_differ_in_slots_and_records():
  one, two = plan(dosed(0.1), 300, seed=0), plan(dosed(0.1), 300, seed=1)
  assert np.any(taken(one) != taken(two))
  assert np.any(taken(plan(BASE, 99, 0), 'b') != taken(plan(BASE, 99, 1), 'b'))
  assert records(one, 'a')[:50] != records(two, 'a')[:50]


@pytest.mark.parametrize('name, size', [('a', 50), ('b', 17)])
def test_every_base_record_appears_once_per_epoch(name, size):
  deals_every_record_once_per_epoch(records(plan(BASE, 1000), name), size)


def test_every_overlay_record_appears_once_per_epoch():
  for dose in (0.05, 0.2):
    deals_every_record_once_per_epoch(
      records(plan(dosed(dose), 1000), 'traits'), 9
    )


def deals_every_record_once_per_epoch(dealt, size):
  epochs = [dealt[i : i + size] for i in range(0, len(dealt), size)]
  begun = epochs.pop()
  assert len(set(begun)) == len(begun)
  assert len(epochs) > 4
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  # Shuffled anew: by chance two of 22 decks of 9 agree once in 1500 seeds.
  assert len(set(map(tuple, epochs))) == len(epochs)
  assert list(range(size)) not in epochs


def test_adding_a_base_stream_does_not_reorder_the_decks_of_others():
  # Without an overlay, which hides some of the base records that it replaces.
  new = {'new': Stream(30, weight=2.0)}
  for name, streams in (('a', BASE), ('b', BASE), ('traits', dosed(0.1))):
    before = records(plan(streams, 600), name)
    after = records(plan(new | streams, 600), name)
    n = min(len(before), len(after))
    assert n > 50 and before[:n] == after[:n], name


def test_adding_an_overlay_leaves_the_first_overlay_alone():
  before = plan(dosed(0.1), 600)
  after = plan(dosed(0.1) | {'new': Stream(30, fraction=0.2)}, 600)
  new = taken(after, 'new')
  assert new.any()
  assert [s for s, n in zip(before, new, strict=True) if not n] == [
    s for s, n in zip(after, new, strict=True) if not n
  ]
  assert not np.any(new & taken(before))


@pytest.mark.parametrize(
  'streams, message',
  [
    ({'a': Stream(0, weight=1.0)}, "'a' has no records"),
    ({'a': Stream(5, weight=-1.0)}, 'weight -1.0'),
    ({'a': Stream(5, weight=float('nan'))}, 'weight nan'),
    ({'a': Stream(5, weight=float('inf'))}, 'weight inf'),
    (BASE | {'t': Stream(5, fraction=-0.1)}, 'fraction -0.1'),
    (BASE | {'t': Stream(5, fraction=1.5)}, 'fraction 1.5'),
    (BASE | {'t': Stream(5, fraction=float('nan'))}, 'fraction nan'),
    ({'a': Stream(5, weight=1.0, fraction=0.1)}, 'both weight 1.0'),
    ({'t': Stream(5, fraction=0.5)}, r"no stream of \['t'\] has a weight"),
    ({}, r'no stream of \[\] has a weight'),
    (
      dosed(0.6) | {'t': Stream(5, fraction=0.6)},
      r'fractions add up to 1\.2; lower',
    ),
  ],
)
def test_mixture_names_what_makes_no_mixture(streams, message):
  with pytest.raises(UserError, match=message):
    Mixture(streams, slots=4, seed=0)


def test_fractions_that_add_up_to_one_with_rounding_are_a_mixture():
  # 0.1 ten times is 0.9999999999999999 in floating point.
  tenths = {f't{i}': Stream(5, fraction=0.1) for i in range(10)}
  slots = plan(BASE | tenths, 1000)
  counts = [np.count_nonzero(taken(slots, name)) for name in tenths]
  assert np.abs(np.array(counts) - 100).max() <= 4


def scheduled(fraction, schedule, size=9):
  return BASE | {'traits': Stream(size, fraction=fraction, schedule=schedule)}


def whole_run(streams, slots, seed=0):
  """All slots of a run of that many, as its one step."""
  return Mixture(streams, slots=slots, seed=seed, steps=1).at(0)


def target(schedule, dose, slots):
  """What is due after each slot, as a sum of fine parts of the density."""
  x = (np.arange(100 * slots) + 0.5) / (100 * slots)
  density = {
    'constant': np.ones_like(x),
    'ramp': 2 * x,
    # A fifth of the run is 0.2 long and its middle quarter from 0.075 on.
    'burst': 4.0 * ((x % 0.2 > 0.075) & (x % 0.2 < 0.125)),
  }[schedule]
  return np.cumsum(dose * density)[99::100] / 100


@pytest.mark.parametrize('slots', [80, 400, 4001])
@pytest.mark.parametrize('dose', [0.01, 0.05, 0.13, 0.25])
@pytest.mark.parametrize('schedule', ['ramp', 'burst'])
def test_a_schedule_is_within_two_slots_at_every_prefix(schedule, dose, slots):
  due = target(schedule, dose, slots)
  assert due[-1] == pytest.approx(dose * slots, abs=0.02)  # the same total
  for seed in range(60):
    count = np.cumsum(taken(whole_run(scheduled(dose, schedule), slots, seed)))
    assert np.abs(count - due).max() <= 2, seed
    assert abs(count[-1] - dose * slots) <= 1, seed


def test_a_ramp_rises_and_a_burst_leaves_the_rest_of_the_run_alone():
  for seed in range(20):
    ramp = taken(whole_run(scheduled(0.25, 'ramp'), 1000, seed))
    # Tenths of the run get 1, 3, 5, ... 19 % of the 250.
    tenths = ramp.reshape(10, 100).sum(1)
    assert np.abs(tenths - 2.5 * np.arange(1, 20, 2)).max() <= 3, seed
    burst = taken(whole_run(scheduled(0.1, 'burst'), 1000, seed))
    # Of each 200 slots, 75 to 125; a slot that waits comes right after.
    assert set(np.flatnonzero(burst) % 200) <= set(range(75, 128)), seed
    assert (np.abs(burst.reshape(5, 200).sum(1) - 20) <= 2).all(), seed


@pytest.mark.parametrize('schedule', ['ramp', 'burst'])
def test_a_schedule_replaces_slots_and_nothing_else(schedule):
  for seed in range(5):
    control = plan(BASE, 1000, seed)
    arm = whole_run(scheduled(0.2, schedule), 1000, seed)
    replaced = taken(arm)
    assert 198 <= replaced.sum() <= 202
    for r in np.flatnonzero(~replaced):
      assert arm[r] == control[r], (seed, r)
    deals_every_record_once_per_epoch(records(arm, 'traits'), 9)
    # Three quarters of what is replaced were a's, as of all that there is.
    from_a = np.count_nonzero(replaced & taken(control, 'a'))
    assert abs(from_a - 150) <= 15, seed


@pytest.mark.parametrize('schedule', ['ramp', 'burst'])
def test_a_scheduled_step_is_a_pure_function_of_seed_and_step(schedule):
  streams = scheduled(0.2, schedule)
  whole = whole_run(streams, 240, seed=4)
  for slots in (1, 8, 60):
    for step in (7, 0, 3, 3, 2, 1):
      if step < 240 // slots:
        # A run that goes on at a step has not been asked for those before.
        fresh = Mixture(streams, slots=slots, seed=4, steps=240 // slots)
        assert fresh.at(step) == whole[step * slots : (step + 1) * slots]


def test_a_constant_dose_does_not_ask_how_long_the_run_is():
  for seed in range(3):
    assert whole_run(dosed(0.1), 500, seed) == plan(dosed(0.1), 500, seed)
  # Slots and records as they were before there were schedules.
  slots = plan(dosed(0.1), 60, seed=0)
  assert np.flatnonzero(taken(slots)).tolist() == [12, 25, 33, 46, 54]
  assert records(slots, 'traits') == [1, 5, 0, 7, 6]


def test_scheduled_overlays_share_the_run_with_a_constant_one():
  streams = {
    'up': Stream(7, fraction=0.2, schedule='ramp'),
    'now': Stream(5, fraction=0.07, schedule='burst'),
    'even': Stream(3, fraction=0.05),
  }
  for seed in range(30):
    slots = whole_run(BASE | streams, 800, seed)
    alone = whole_run(BASE | {'even': streams['even']}, 800, seed)
    assert np.array_equal(taken(slots, 'even'), taken(alone, 'even'))
    for name, s in streams.items():
      off = np.cumsum(taken(slots, name)) - target(s.schedule, s.fraction, 800)
      assert np.abs(off).max() <= 4, (seed, name)


@pytest.mark.parametrize(
  'stream, message',
  [
    (Stream(5, fraction=0.1, schedule='wave'), "the schedule 'wave', expected"),
    (Stream(5, weight=1.0, schedule='ramp'), 'only an overlay'),
    (Stream(5, fraction=0.6, schedule='ramp'), r'add up to 1\.2; lower'),
    (Stream(5, fraction=0.3, schedule='burst'), r'add up to 1\.2; lower'),
  ],
)
def test_mixture_names_a_schedule_that_cannot_be(stream, message):
  with pytest.raises(UserError, match=message):
    Mixture(BASE | {'t': stream}, slots=4, seed=0, steps=10)


def test_a_schedule_needs_the_length_of_the_run():
  for schedule in set(SCHEDULES) - {'constant'}:
    with pytest.raises(UserError, match='0 steps'):
      Mixture(scheduled(0.1, schedule), slots=4, seed=0)


def test_ledger_shares_are_the_hand_worked_ones():
  ledger = DoseLedger(['base', 'traits'])
  ledger.add(slots=np.array([3, 1]), tokens=np.array([90, 10]))
  ledger.add(slots=np.array([4, 0]), tokens=np.array([60, 0]))
  ledger.add(gradient=np.array([0.25, 0.75]))
  # Slots 7 and 1 of 8; tokens 150 and 10 of 160; no advantage was added.
  assert ledger.shares() == {
    'dose/base/slots': 0.875,
    'dose/traits/slots': 0.125,
    'dose/base/tokens': 0.9375,
    'dose/traits/tokens': 0.0625,
    'dose/base/gradient': 0.25,
    'dose/traits/gradient': 0.75,
  }


def test_ledger_without_amounts_has_no_shares():
  ledger = DoseLedger(['base', 'traits'])
  assert ledger.shares() == {}
  ledger.add(advantage=np.zeros(2))
  assert ledger.shares() == {}


def test_ledger_refuses_a_measure_that_it_does_not_know():
  with pytest.raises(KeyError, match='words'):
    DoseLedger(['base']).add(words=np.ones(1))


def test_ledger_restored_through_json_goes_on_to_the_last_bit():
  rng = np.random.default_rng(0)
  steps = [
    {m: rng.random(3) * 10.0**i for m in DoseLedger.MEASURES}
    for i in range(-6, 6)
  ]
  names = ['a', 'b', 'traits']
  whole, first, second = DoseLedger(names), DoseLedger(names), DoseLedger(names)
  for step in steps:
    whole.add(**step)
  for step in steps[:5]:
    first.add(**step)
  second.restore(json.loads(json.dumps(first.state())))
  for step in steps[5:]:
    second.add(**step)
  assert second.state() == whole.state()
  assert second.shares() == whole.shares()


def test_ledger_state_is_a_copy():
  ledger = DoseLedger(['base', 'traits'])
  ledger.add(slots=np.array([3, 1]))
  state = ledger.state()
  ledger.add(slots=np.array([0, 4]))
  assert state['slots'] == [3.0, 1.0]
  ledger.restore(state)
  ledger.add(slots=np.array([1, 0]))
  assert state['slots'] == [3.0, 1.0]
