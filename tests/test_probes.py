"""The shallow probes: hand-worked numbers, invariances, planted shortcuts."""

import numpy as np
import pytest

from alignment_rl import probes
from alignment_rl.errors import UserError

GROUPS = np.repeat(['a', 'b', 'c', 'd'], 50)
WORDS = 'the a we you it on in of to plan step today later maybe soon'.split()


def sentences(seed, count=200):
  rng = np.random.default_rng(seed)
  return [' '.join(rng.choice(WORDS, 12)) for _ in range(count)]


def column(*numbers):
  return np.array(numbers, float)[:, None]


def every_probe(better, worse, groups):
  """Wins of each probe, by name."""
  return {
    'tf-idf': probes.left_out_wins(
      *probes.word_features(better, worse), groups
    ),
    **probes.length_wins(better, worse, groups),
  }


def test_a_linear_score_by_hand():
  # One feature: the sign of its weight is that of the fitted differences' sum,
  # for the likelihood's slope at 0 is half that sum and the loss is convex.
  # a: +1 +1 -1, the sum is +1: in b the higher one wins. b: +2 -3 0, the sum is
  # -1: in a the lower one wins.
  groups = ['a'] * 3 + ['b'] * 3
  better, worse = column(1, 1, 0, 2, 0, 7), column(0, 0, 1, 0, 3, 7)
  found = probes.left_out_wins(better, worse, groups)
  np.testing.assert_array_equal(found, [0, 0, 1, 1, 0, 0.5])


def test_only_one_group_is_read():
  groups = ['a'] * 3 + ['b'] * 3
  better, worse = column(1, 1, 0, 2, 0, 7), column(0, 0, 1, 0, 3, 7)
  found = probes.left_out_wins(better, worse, groups, only='b')
  np.testing.assert_array_equal(found, [np.nan] * 3 + [1, 0, 0.5])


def test_lengths_by_hand():
  groups = ['a', 'a', 'a', 'b', 'b', 'b', 'b']
  better = ['a b c', 'a b', 'a', 'aaaa bb', 'a b', 'aaaaaa', 'a']
  worse = ['a b', 'a', 'a b', 'a', 'a b', 'a b', 'a b']
  # In words, the better one of a is longer in 2 of 3: in b the longer wins. The
  # better one of b is longer, equal, shorter, shorter: 0.375, so in a the
  # shorter wins.
  found = probes.length_wins(better, worse, groups)
  np.testing.assert_array_equal(found['words'], [0, 0, 1, 1, 0.5, 0, 0])
  # In characters b has longer, equal, longer, shorter: 0.625, the longer wins.
  np.testing.assert_array_equal(found['characters'], [1, 1, 0, 1, 0.5, 1, 0])


def test_length_is_a_tie_where_the_other_groups_say_neither():
  better, worse = ['a b', 'a', 'a b c'], ['a', 'a b', 'a']
  found = probes.length_wins(better, worse, ['a', 'a', 'b'])
  # b says longer; a, one each, says nothing of b.
  np.testing.assert_array_equal(found['words'], [1, 0, 0.5])


def test_telling_words_by_hand():
  better = ['Was it not', 'was he not not', 'was she not', 'no!']
  worse = ['is it', 'is he', 'are she', 'no not']
  # was 3:0 is 3/sqrt(3); is 0:2 is 2/sqrt(2); not 3:1 is 2/sqrt(4); ! 1:0 and
  # are 0:1 are 1. it, he, she and no are on both sides.
  assert probes.telling_words(better, worse) == [
    ('was', 3, 0), ('is', 0, 2), ('!', 1, 0), ('are', 0, 1), ('not', 3, 1)
  ]  # fmt: skip
  assert probes.telling_words(better, worse, most=1) == [('was', 3, 0)]


def test_swapping_the_group_that_is_read_gives_one_minus_wins():
  better, worse = sentences(0), sentences(1)
  worse = [w + ' extra' * (i % 3) for i, w in enumerate(worse)]
  before = every_probe(better, worse, GROUPS)
  mine = GROUPS == 'b'
  swapped = [
    [x, y] if m else [y, x] for x, y, m in zip(worse, better, mine, strict=True)
  ]
  after = every_probe(*zip(*swapped, strict=True), GROUPS)
  for name, wins in before.items():
    np.testing.assert_array_equal(after[name][mine], 1 - wins[mine], name)
    assert 0 < wins[mine].mean() < 1, name


def test_no_side_is_privileged():
  # With all pairs swapped the probes learn the opposite, and do as well.
  better, worse = sentences(0), sentences(1)
  worse = [w + ' extra' * (i % 3) for i, w in enumerate(worse)]
  before = every_probe(better, worse, GROUPS)
  for name, wins in every_probe(worse, better, GROUPS).items():
    np.testing.assert_array_equal(wins, before[name], name)


def test_wins_go_with_their_pairs_in_any_order():
  better, worse = np.array(sentences(0)), np.array(sentences(1))
  order = np.random.default_rng(0).permutation(len(GROUPS))
  before = every_probe(better, worse, GROUPS)
  after = every_probe(better[order], worse[order], GROUPS[order])
  for name, wins in before.items():
    np.testing.assert_array_equal(after[name], wins[order], name)


def test_the_unit_of_a_feature_does_not_matter():
  rng = np.random.default_rng(0)
  better, worse = rng.normal(size=(2, len(GROUPS), 4))
  better[:, 0] += 0.5
  unit = np.array([1000, 0.01, 1, 1])
  found = probes.left_out_wins(better * unit, worse * unit, GROUPS)
  expected = probes.left_out_wins(better, worse, GROUPS)
  np.testing.assert_array_equal(found, expected)


def test_equal_replies_tie():
  better, worse = sentences(0), sentences(1)
  better[7], better[60] = worse[7], worse[60]
  for name, wins in every_probe(better, worse, GROUPS).items():
    assert (wins[7], wins[60]) == (0.5, 0.5), name
  alike = every_probe(worse, worse, GROUPS)
  assert all((wins == 0.5).all() for wins in alike.values())


def test_mirrors_are_at_one_half_whatever_the_rest_gives_away():
  one, other = sentences(0, 100), sentences(1, 100)
  twins = [x + ' so there' for x in one]
  # The rest gives itself away; each twin's better reply is the other's worse.
  better = [x + ' indeed yes' for x in one] + twins + other
  worse = other + other + twins
  groups = [*GROUPS[:100], *GROUPS[100:], *GROUPS[100:]]
  for name, wins in every_probe(better, worse, groups).items():
    assert wins[:100].mean() > 0.9, name
    np.testing.assert_array_equal(wins[100:200], 1 - wins[200:], name)
    assert wins[100:].mean() == 0.5, name


def test_a_planted_shortcut_is_found_and_its_absence_is_not():
  better, worse = sentences(0), sentences(1)
  plain = every_probe(better, worse, GROUPS)
  assert all(abs(w.mean() - 0.5) < 0.1 for w in plain.values()), plain
  # Of one length in words: only the word itself tells.
  word = every_probe(
    [x + ' honestly' for x in better], [x + ' anyway' for x in worse], GROUPS
  )
  assert word['tf-idf'].mean() == 1 and (word['words'] == 0.5).all()
  # The same words in another order: only neighbours tell.
  order = every_probe(
    [x + ' not so' for x in better], [x + ' so not' for x in worse], GROUPS
  )
  assert order['tf-idf'].mean() == 1
  mark = every_probe(
    [x + '!' for x in better], [x + '.' for x in worse], GROUPS
  )
  assert mark['tf-idf'].mean() == 1
  longer = every_probe([x + ' step' for x in better], worse, GROUPS)
  assert longer['words'].mean() == 1


def test_a_planted_direction_of_hidden_states_is_found():
  rng = np.random.default_rng(0)
  better, worse = rng.normal(size=(2, len(GROUPS), 30))
  found = probes.left_out_wins(better, worse, GROUPS)
  assert abs(found.mean() - 0.5) < 0.1
  direction = rng.normal(size=30)
  found = probes.left_out_wins(better + direction, worse, GROUPS)
  assert found.mean() > 0.97
  # A direction that turns around in one domain fails there, and only there.
  better[GROUPS != 'd'] += direction
  better[GROUPS == 'd'] -= direction
  found = probes.left_out_wins(better, worse, GROUPS)
  turned, kept = found[GROUPS == 'd'].mean(), found[GROUPS != 'd'].mean()
  assert turned < 0.1 < 0.6 < kept


@pytest.mark.parametrize('groups', [['a', 'a'], []])
def test_fewer_than_two_groups_are_refused(groups):
  texts = ['yes.'] * len(groups)
  with pytest.raises(UserError, match='expected two or more'):
    probes.length_wins(texts, texts, groups)
  features = np.zeros((len(groups), 1))
  with pytest.raises(UserError, match='expected two or more'):
    probes.left_out_wins(features, features, groups)
