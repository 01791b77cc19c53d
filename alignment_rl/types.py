"""The nouns of the project, and the numbered purposes of its randomness.

Axis letters, used in every docstring, comment and einsum: B prompts per step,
G completions per prompt, P prompt length, C completion length, S cache slots,
T tokens of one call, V vocab, D embed, L layers, Q query heads, K kv heads,
R query heads per kv head (Q = K R), H head dim, F mlp, N rank of LoRA.
"""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import flax.struct
import jax
import numpy as np


class Purpose(enum.IntEnum):
  """What a random number is for; folded into the run's seed, never reused."""

  INIT = 0
  SAMPLE = 1
  EVALUATE = 2
  CHAT = 3
  GENERATE = 4
  SCALE = 5


@dataclasses.dataclass(frozen=True)
class Message:
  role: str  # 'system', 'user' or 'assistant'
  content: str


@dataclasses.dataclass(frozen=True)
class Example:
  """A prompt, a demonstration or a benchmark item, on the host.

  Attributes:
    id: unique and stable, '<stream>/<key>'.
    messages: the conversation so far; the last turn is the user's.
    target: the demonstrated reply, if there is one.
    choices: candidate replies of a choice benchmark, the aligned one first.
    metadata: trait, domain, rubric, constraint, ...: what its reward reads.
  """

  id: str
  messages: tuple[Message, ...]
  target: str | None = None
  choices: tuple[str, ...] = ()
  metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@flax.struct.dataclass
class KVCache:
  """Keys and values of a segment, after RoPE.

  A prompt segment is `[L, B, P, K, H]`, shared by its group; a completion
  segment is `[L, B, G, S, K, H]`.
  """

  k: jax.Array
  v: jax.Array


@flax.struct.dataclass
class Rollout:
  """Prompts and the completions sampled from them. The prompt is held once.

  Entry `t` of every completion array describes completion token `t` given all
  before it. What lies at or beyond a length is padding, of any content.
  """

  prompts: jax.Array | np.ndarray  # int32 [B, P]
  prompt_lengths: jax.Array | np.ndarray  # int32 [B]
  completions: jax.Array | np.ndarray  # int32 [B, G, C]
  lengths: jax.Array | np.ndarray  # int32 [B, G], EOS included
  logprobs: jax.Array | np.ndarray  # float32 [B, G, C], nats, of the sampler


@flax.struct.dataclass
class Batch:
  """What one update reads, over the global batch."""

  rollout: Rollout
  reference_logprobs: jax.Array | np.ndarray  # float32 [B, G, C], nats
  advantages: jax.Array | np.ndarray  # float32 [B, G, C]
  returns: jax.Array | np.ndarray  # float32 [B, G, C], targets of the value
  values: jax.Array | np.ndarray  # float32 [B, G, C], before the update
  weights: jax.Array | np.ndarray  # float32 [B, G, C], sums to the loss scale
  demonstration: jax.Array | np.ndarray  # bool [B, G]: importance ratio is 1
  stream: jax.Array | np.ndarray  # int32 [B], index into the stream names


@flax.struct.dataclass
class TrainState:
  step: jax.Array  # int32 [], updates done; also the position in the data
  params: Any
  opt_state: Any


class Tokenizer(Protocol):
  """Text to token ids and back, and the chat format of the model."""

  vocab_size: int
  pad_id: int
  start_id: int  # a text without context is read after it
  eos_ids: tuple[int, ...]

  def encode(self, text: str, controls: bool = False) -> list[int]:
    """Text as tokens; `controls` reads control strings as control tokens."""
    ...

  def encode_chat(
    self, messages: Sequence[Message], prefill: str = ''
  ) -> list[int]:
    """`render` and the reply's beginning as tokens.

    The template's control strings are control tokens, those that a message or
    `prefill` spells are text.
    """
    ...

  def decode(self, ids: Sequence[int]) -> str: ...

  def render(self, messages: Sequence[Message]) -> str:
    """The conversation as text, ending where the assistant's reply begins."""
    ...


class Judge(Protocol):
  """A frozen model that reads text for a reward."""

  def logprobs(
    self, contexts: Sequence[str], continuations: Sequence[Sequence[str]]
  ) -> list[np.ndarray]:
    """Summed log-probability of each continuation, nats: float32 [n] each."""
    ...

  def fingerprint(self) -> str:
    """Changes whenever the model's numbers do."""
    ...


class RewardFn(Protocol):
  """Scores completions in [0, 1]; NaN = unscored, never 0 for a failure."""

  def __call__(
    self,
    examples: Sequence[Example],
    completions: Sequence[str],
    *,
    judge: Judge | None,
  ) -> np.ndarray: ...
