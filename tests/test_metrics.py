"""Files of numbers and samples, as a resumed run finds them."""

import json

from alignment_rl import metrics

# Each ends a line for str.splitlines; JSON leaves the last three as they are.
SEPARATORS = '\n\r\x0b\x0c\x1c\x85\u2028\u2029'


def test_a_resumed_run_keeps_the_lines_before_its_step(tmp_path):
  path = tmp_path / 'rollouts.jsonl'
  writer = metrics.Writer(tmp_path, step=0, active=True)
  for step in range(4):
    said = f'a{SEPARATORS}b é'
    writer.rollouts(step, [{'completions': [said]}, {'completions': ['']}])
  writer.close()
  whole = path.read_bytes()
  with path.open('a', encoding='utf-8') as file:
    file.write('{"step": 1, "completions": ["half')  # as a kill leaves it
  metrics.Writer(tmp_path, step=2, active=True).close()
  kept = path.read_bytes()
  assert kept == b''.join(whole.splitlines(keepends=True)[:4])
  records = [json.loads(line) for line in kept.decode().split('\n')[:-1]]
  assert [r['step'] for r in records] == [0, 0, 1, 1]
  assert records[0]['completions'] == [f'a{SEPARATORS}b é']
