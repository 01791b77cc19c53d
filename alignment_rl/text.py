"""Text to tokens and back: tokenizers, chat templates, length buckets.

Two tokenizers with one contract (`types.Tokenizer`): bytes, which ships for
tests and tiny models, and byte-pair encodings read from a GGUF file or a
Hugging Face folder. The chat template is the model's own, run in a sandbox.
Only a template speaks in control tokens: what is said in a message, a reply or
a criterion is text, also where it spells '<|im_end|>'.
"""

import datetime
import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence

import jinja2
import jinja2.ext
import jinja2.sandbox
import numpy as np
import tokenizers

from alignment_rl.errors import UserError
from alignment_rl.types import Message

CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
  " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4
_BYTE_SPECIALS = ('<|pad|>', '<|im_start|>', '<|im_end|>')
# The day that templates hear of: runs that are resumed, or compared, on another
# one read the same prompts.
TODAY = datetime.datetime(2024, 7, 26)

_DIGITS_THEN_BYTES = ('smollm', 'starcoder', 'refact', 'command-r')


class ByteTokenizer:
  """UTF-8 bytes, with ChatML's markers as single tokens above 255."""

  pad_id = 256
  start_id = 257
  eos_ids = (258,)
  vocab_size = 264  # A multiple of 8, so that a mesh can divide it.

  def __init__(self, template: str = CHATML):
    self.template = template

  def encode(self, text: str, controls: bool = False) -> list[int]:
    if not controls:
      return list(text.encode())
    ids = []
    for part in re.split(_either(self._controls), text):
      ids += [self._controls[part]] if part in self._controls else part.encode()
    return ids

  def encode_chat(
    self, messages: Sequence[Message], prefill: str = ''
  ) -> list[int]:
    return _encode_chat(self, self._controls, messages, prefill)

  @property
  def _controls(self):
    return {special: 256 + i for i, special in enumerate(_BYTE_SPECIALS)}

  def decode(self, ids: Sequence[int]) -> str:
    return bytes(int(i) for i in ids if i < 256).decode(errors='replace')

  def render(self, messages: Sequence[Message]) -> str:
    return render_chat(self.template, messages)

  def save(self, folder: pathlib.Path) -> None:
    """Writes the files from which `from_folder` builds this again."""
    config = {
      'tokenizer_class': 'ByteTokenizer',
      'chat_template': self.template,
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2))


class BPETokenizer:
  """A `tokenizers` byte-pair encoding with its chat template and EOS ids."""

  def __init__(
    self,
    bpe: tokenizers.Tokenizer,
    *,
    template: str,
    eos_ids: Sequence[int],
    pad_id: int,
    start_id: int | None = None,
  ):
    self.bpe = bpe
    self.template = template
    self.eos_ids = tuple(eos_ids)
    self.pad_id = pad_id
    # What a text without context is read after; a model that has no such token
    # has seen an end of text there.
    self.start_id = self.eos_ids[0] if start_id is None else start_id
    self.vocab_size = bpe.get_vocab_size()
    # As published files and templates call them.
    ids = {'eos_token': self.eos_ids[0], 'pad_token': pad_id}
    ids |= {} if start_id is None else {'bos_token': start_id}
    self.special = {name: bpe.id_to_token(i) for name, i in ids.items()}

  def encode(self, text: str, controls: bool = False) -> list[int]:
    bpe = self.bpe if controls else self._plain
    return bpe.encode(text, add_special_tokens=False).ids

  def encode_chat(
    self, messages: Sequence[Message], prefill: str = ''
  ) -> list[int]:
    return _encode_chat(self, self._controls, messages, prefill)

  @functools.cached_property
  def _plain(self):
    """The encoding that reads control strings as any other text."""
    plain = tokenizers.Tokenizer.from_str(self.bpe.to_str())
    plain.encode_special_tokens = True
    return plain

  @functools.cached_property
  def _controls(self):
    added = self.bpe.get_added_tokens_decoder().items()
    return {token.content: i for i, token in added if token.special}

  def decode(self, ids: Sequence[int]) -> str:
    return self.bpe.decode([int(i) for i in ids], skip_special_tokens=True)

  def render(self, messages: Sequence[Message]) -> str:
    return render_chat(self.template, messages, self.special)

  def save(self, folder: pathlib.Path) -> None:
    """Writes the files from which `from_folder` builds this again."""
    self.bpe.save(str(folder / 'tokenizer.json'))
    config = self.special | {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'chat_template': self.template,
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2))
    generation = {'eos_token_id': list(self.eos_ids)}
    (folder / 'generation_config.json').write_text(json.dumps(generation))


def from_gguf(fields: dict) -> BPETokenizer:
  """Builds the byte-pair encoding that a GGUF file describes.

  Raises:
    UserError: the file holds another kind of tokenizer.
  """
  get = lambda name: fields[f'tokenizer.ggml.{name}']
  kind, splitter = get('model'), get('pre')
  if kind != 'gpt2' or splitter not in _DIGITS_THEN_BYTES:
    raise UserError(
      f'the GGUF file has tokenizer {kind!r} with splitter {splitter!r}, '
      f"expected 'gpt2' with one of {list(_DIGITS_THEN_BYTES)}; load the "
      "model's Hugging Face folder instead"
    )
  tokens = get('tokens')
  merges = [tuple(merge.split(' ')) for merge in get('merges')]
  bpe = tokenizers.Tokenizer(
    tokenizers.models.BPE({t: i for i, t in enumerate(tokens)}, merges)
  )
  split = tokenizers.pre_tokenizers
  bpe.pre_tokenizer = split.Sequence(
    [
      split.Digits(individual_digits=True),
      split.ByteLevel(add_prefix_space=False),
    ]
  )
  bpe.decoder = tokenizers.decoders.ByteLevel()
  special = [
    token
    for token, kind in zip(tokens, get('token_type'), strict=True)
    if kind in (_GGUF_CONTROL, _GGUF_USER_DEFINED)
  ]
  bpe.add_special_tokens(special)
  # A base model's end of text ends a chat reply too.
  ends = [get('eos_token_id')]
  ends += [i for i, t in enumerate(tokens) if t == '<|endoftext|>']
  return BPETokenizer(
    bpe,
    template=fields['tokenizer.chat_template'],
    eos_ids=tuple(dict.fromkeys(ends)),
    pad_id=get('padding_token_id'),
    start_id=fields.get('tokenizer.ggml.bos_token_id'),
  )


def from_folder(folder: pathlib.Path) -> 'BPETokenizer | ByteTokenizer':
  """Reads the tokenizer files of a Hugging Face folder (or of ours).

  Raises:
    UserError: a file is missing or lacks the chat template.
  """
  config_file = folder / 'tokenizer_config.json'
  if not config_file.exists():
    raise UserError(
      f'{folder} has no tokenizer_config.json; give a folder that holds '
      'config.json, model.safetensors, tokenizer.json and it'
    )
  config = json.loads(config_file.read_text())
  template = config.get('chat_template')
  if template is None and (folder / 'chat_template.jinja').exists():
    template = (folder / 'chat_template.jinja').read_text()
  if isinstance(template, list):  # Several by name, such as one for tools.
    template = {t['name']: t['template'] for t in template}.get('default')
  if template is None:
    raise UserError(
      f'{config_file} has no chat_template; add one, or use an instruct model'
    )
  if config.get('tokenizer_class') == 'ByteTokenizer':
    return ByteTokenizer(template)
  if not (folder / 'tokenizer.json').exists():
    raise UserError(f'{folder} has no tokenizer.json; add the fast tokenizer')
  bpe = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  content = lambda t: t['content'] if isinstance(t, dict) else t
  ends = [bpe.token_to_id(content(config['eos_token']))]
  generation = folder / 'generation_config.json'
  if generation.exists():
    more = json.loads(generation.read_text()).get('eos_token_id', [])
    ends += more if isinstance(more, list) else [more]
  known = lambda name: (
    bpe.token_to_id(content(config[name])) if config.get(name) else None
  )
  pad = known('pad_token')
  return BPETokenizer(
    bpe,
    template=template,
    eos_ids=tuple(dict.fromkeys(ends)),
    pad_id=ends[0] if pad is None else pad,
    start_id=known('bos_token'),
  )


def render_chat(
  template: str,
  messages: Sequence[Message],
  special: Mapping[str, str] | None = None,
) -> str:
  """Runs a chat template, ending where the assistant's reply begins.

  A template finds here what transformers gives it, but for the date, which is
  always `TODAY`.

  Args:
    special: control strings by the name that templates know them by, such as
      'bos_token'.

  Raises:
    UserError: the template refuses these messages.
  """

  def refuse(message):
    raise UserError(f'the chat template refuses the conversation: {message}')

  def to_json(
    x, ensure_ascii=False, indent=None, separators=None, sort_keys=False
  ):
    # Jinja's own escapes what a web page would read.
    return json.dumps(
      x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
      sort_keys=sort_keys,
    )  # fmt: skip

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
  )
  environment.filters['tojson'] = to_json
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = TODAY.strftime
  return environment.from_string(template).render(
    messages=[{'role': m.role, 'content': m.content} for m in messages],
    tools=None,
    documents=None,
    add_generation_prompt=True,
    **(special or {}),
  )


def _encode_chat(
  tokenizer: 'BPETokenizer | ByteTokenizer',
  controls: Mapping[str, int],
  messages: Sequence[Message],
  prefill: str,
) -> list[int]:
  """The rendered chat as tokens; what messages and prefill hold stays text.

  Args:
    controls: control string -> token.
  """
  said = prefill + ''.join(m.role + m.content for m in messages)
  if not any(control in said for control in controls):
    return tokenizer.encode(tokenizer.render(messages) + prefill, controls=True)
  # While the template runs, a character that nobody said stands for each, so
  # that every control string in what it gives is its own.
  free = (c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in said)
  hidden = dict(zip(controls, free, strict=False))
  either = _either(controls)
  hide = lambda text: either.sub(lambda found: hidden[found[0]], text)
  shown = str.maketrans({mark: control for control, mark in hidden.items()})
  rendered = tokenizer.render(
    [Message(hide(m.role), hide(m.content)) for m in messages]
  )
  tokens = []
  for part in re.split(either, rendered + hide(prefill)):
    own = part in controls
    tokens += (
      [controls[part]] if own else tokenizer.encode(part.translate(shown))
    )
  return tokens


def _either(controls) -> re.Pattern:
  """Any of the strings, the longest that fits, kept by `re.split`."""
  longest = sorted(controls, key=len, reverse=True)
  return re.compile(f'({"|".join(map(re.escape, longest))})')


def bucket(length: int, step: int) -> int:
  """The least positive multiple of `step` that holds `length` tokens.

  A program is compiled per length, and each compilation is kept in memory, so
  every padded length comes from here, `coarse` or `first_that_holds`.
  """
  return max(1, -(-length // step)) * step


def coarse(length: int, least: int) -> int:
  """The least of 2^k and 3 x 2^k that holds `length`, and at least `least`.

  Two sizes an octave: for texts of very different lengths, where `bucket` would
  compile a program for each.
  """
  size = max(length, least)
  power = 1 << (size - 1).bit_length()
  return 3 * power // 4 if size <= 3 * power // 4 else power


def first_that_holds(length: int, sizes: Sequence[int]) -> int:
  """The first of ascending `sizes` that is `length` or more; else the last."""
  return next((size for size in sizes if size >= length), sizes[-1])


def rows_within(rows: int, length: int, multiple: int) -> int:
  """How many of `rows` prompts of a padded length to run at a time.

  All of them up to 1024 tokens, fewer in proportion beyond, a multiple of
  `multiple` and at least that: attention's memory grows with the square.
  """
  fewer = rows * 1024 // max(length, 1024)
  return max(multiple, fewer // multiple * multiple)


def padded_rows(rows: int, most: int, multiple: int) -> int:
  """To how many rows a batch of `rows` is padded: `most`, a quarter, and so on.

  Few sizes, so few compilations; a batch of one does not cost one of `most`.
  """
  size = most
  while size // 4 >= max(rows, multiple):
    size //= 4
  return bucket(size, multiple)


def pad(rows: Sequence[Sequence[int]], length: int, pad_id: int):
  """Right-pads token rows.

  Returns:
    int32 [n, length] and the rows' lengths, int32 [n].

  Raises:
    ValueError: a row is longer than `length`.
  """
  out = np.full((len(rows), length), pad_id, np.int32)
  for i, row in enumerate(rows):
    if len(row) > length:
      raise ValueError(f'row {i} has {len(row)} tokens, over {length}')
    out[i, : len(row)] = row
  return out, np.array([len(row) for row in rows], np.int32)
