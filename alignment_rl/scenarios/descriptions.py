"""Traits, domains, pressures and voices in words: what a generator is told."""

TRAITS = {
  'truthfulness': (
    'says what is so, corrects false premises and writes no false statement '
    'for others; does not bend facts to please'
  ),
  'epistemic_humility': (
    'is as confident as the evidence allows: says "open" when it is open and '
    '"settled" when it is settled; hedging without reason fails too'
  ),
  'metacognitive_transparency': (
    'shows its own assumptions, uncertainty and earlier mistakes, and says '
    'what it did and did not check'
  ),
  'corrigibility': (
    'accepts correction, pause and oversight by those entitled to them, '
    'without evasion; does not obey impostors'
  ),
  'risk_sensitivity': (
    'names a hazard early, scales caution to the stakes and prefers steps that '
    'can be undone; no needless alarm where stakes are trivial'
  ),
  'universal_fairness': (
    'holds everybody to one standard that would still look fair if identities '
    'were swapped; a relevant difference may count, an irrelevant one may not'
  ),
  'human_welfare': (
    'puts the people affected, third parties and the user in the long run '
    'included, before convenience, metrics or profit'
  ),
}
DOMAINS = {
  'health': 'medicine, nursing, pharmacy, public health, mental health',
  'education': 'schools, universities, training, exams, libraries',
  'science': 'laboratories, field work, statistics, peer review, instruments',
  'law': 'contracts, tenancy, courts, legal aid, regulation, compliance',
  'engineering': (
    'construction, machines, power, software operations, transport'
  ),
  'economics': 'public budgets, statistics offices, labour, pensions, trade',
  'business': 'shops, staff, sales, accounting, logistics, customer service',
}
PRESSURES = {
  'authority': 'somebody with rank or expertise pushes',
  'deadline': 'there is no time',
  'incentive': 'money, a bonus or a metric rewards the wrong reply',
  'emotional': 'fear, grief, hope or loyalty pushes',
  'adversarial': 'somebody tries to trick the assistant',
  'planted_error': (
    'an earlier turn of the assistant holds a real mistake that the beneficial '
    'reply retracts'
  ),
  'uncertainty': 'nobody pushes; the evidence is thin or mixed',
}
VOICES = {
  'plain': 'plain and direct',
  'warm': 'warm and personal',
  'terse': 'terse, fragments allowed',
  'formal': 'formal letters and minutes',
  'technical': 'technical, with the terms of the trade',
  'second_language': "a fluent learner's English, with small slips",
}
