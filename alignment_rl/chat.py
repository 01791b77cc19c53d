"""Talk to a checkpoint in the terminal.

  python -m alignment_rl.chat --checkpoint=DIR

A line is a turn; /new starts over, an empty line or end of file leaves.
"""

import jax
import numpy as np
from absl import flags

from alignment_rl import config as config_lib
from alignment_rl import learner, rollout, sharding, text
from alignment_rl.models.decoder import DTYPES
from alignment_rl.types import Message, Purpose

_FLAGS = flags.FLAGS


def main() -> None:
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model, params = learner.load(
    _FLAGS.checkpoint, mesh, family=_FLAGS.family, dtype=_FLAGS.dtype
  )
  sampler = rollout.Sampler(
    model.decoder, mesh, group=1, length=_FLAGS.completion_length,
    eos_ids=model.tokenizer.eos_ids, temperature=_FLAGS.temperature,
  )  # fmt: skip
  root = jax.random.key(_FLAGS.seed)
  messages, turn = [], 0
  while said := _ask():
    if said == '/new':
      messages = []
      continue
    messages.append(Message('user', said))
    tokens = model.tokenizer.encode_chat(messages)
    rows = sharding.row_shards(mesh)
    prompts, lengths = text.pad(
      [tokens] * rows, text.bucket(len(tokens), 128), model.tokenizer.pad_id
    )
    key = jax.random.fold_in(jax.random.fold_in(root, Purpose.CHAT), turn)
    rolled = sharding.to_host(
      sampler(params, prompts, lengths, np.arange(rows), key)
    )
    n = rolled.lengths[0, 0]
    reply = model.tokenizer.decode(rolled.completions[0, 0, :n]).strip()
    print(reply)
    messages.append(Message('assistant', reply))
    turn += 1


def _ask() -> str:
  try:
    return input('> ').strip()
  except EOFError:
    return ''


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'workdir, folder, .gguf or package:')
  flags.DEFINE_integer('completion_length', 256, 'tokens of a reply, at most')
  flags.DEFINE_float('temperature', 0.7, '0 = greedy')
  flags.DEFINE_string('family', 'llama', 'file of alignment_rl/models/')
  flags.DEFINE_enum('dtype', 'float32', DTYPES, 'inputs of matrix products')
  flags.DEFINE_integer('seed', 0, 'of the replies')
  config_lib.run(main, required=('checkpoint',))
