"""Asks an OpenAI-compatible endpoint many questions at once.

The key comes from an environment variable and is never stored; where a server
repeats it, it is cut out. Every question ends in an answer or in a failure that
says why: nothing is dropped. Needs the extra `endpoint` (openai).
"""

import asyncio
import dataclasses
import functools
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from alignment_rl import config
from alignment_rl.errors import UserError

Messages = Sequence[dict[str, str]]

_AGAIN = (408, 409, 429)  # and 500 or more: another attempt may do better
_THIS_ONE = (400, 413, 422)  # about one question, such as one too long
_LEAST = {
  'concurrency': 1, 'attempts': 1, 'max_tokens': 1, 'timeout': 1e-9,
  'rate': 0, 'backoff': 0, 'temperature': 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Answer:
  """What came back; `value` is None where no attempt gave a usable answer."""

  value: Any
  raw: str  # text of the last attempt, '' if there was none
  error: str  # of the last attempt, '' if it was fine
  attempts: int


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where and how to ask.

  Attributes:
    url: base address, such as 'http://localhost:8000/v1'; no key in it.
    model: name of the model there.
    key_variable: environment variable that holds the key; local servers that
      want none may leave it unset.
    concurrency: requests in flight, at most.
    rate: requests a second, at most, of this process to this address; 0 = no
      limit.
    timeout: seconds of one request.
    attempts: requests for one question, at most.
    backoff: seconds before the second attempt; doubles after each.
    max_tokens: of an answer.
    temperature: of its sampling.
  """

  url: str
  model: str
  key_variable: str = 'OPENAI_API_KEY'
  concurrency: int = 8
  rate: float = 0.0
  timeout: float = 60.0
  attempts: int = 4
  backoff: float = 1.0
  max_tokens: int = 512
  temperature: float = 0.0

  def __post_init__(self):
    # What may hold a key is not repeated in the message.
    if set('@?#') & set(self.url):
      raise UserError(
        "the endpoint's url holds '@', '?' or '#'; expected a bare address; a "
        'key comes from the environment alone'
      )
    if not re.fullmatch('[A-Z_][A-Z0-9_]*', self.key_variable):
      raise UserError(
        "the endpoint's key_variable is not the name of an environment "
        "variable; expected capitals, such as 'OPENAI_API_KEY'; the key itself "
        'belongs in that variable'
      )
    if not self.url.startswith(('http://', 'https://')) or not self.model:
      raise UserError(
        f'the endpoint has url {self.url!r} and model {self.model!r}; expected '
        "an address such as 'http://localhost:8000/v1' and a model's name"
      )
    for name, least in _LEAST.items():
      if not getattr(self, name) >= least:
        raise UserError(
          f'the endpoint has {name} {getattr(self, name)}, expected '
          f'{"0 or more" if least == 0 else "a positive number"}'
        )

  def ask(
    self,
    questions: Sequence[Messages],
    parse: Callable[[int, str], Any],
    heard: Callable[[int, Answer], None] = lambda index, answer: None,
  ) -> list[Answer]:
    """Answers in the order of the questions.

    Runs an event loop of its own, so not to be called from inside one, such as
    a notebook's: there, call it in a thread (`asyncio.to_thread`).

    Args:
      parse: turns the text of the answer to question i, as parse(i, text), into
        a value, or raises ValueError: the question is then asked again.
      heard: is told of each answer as it arrives.

    Raises:
      UserError: the endpoint refuses the key or the model.
    """
    openai = config.need('openai', 'endpoint')
    return asyncio.run(self._ask_all(openai, questions, parse, heard))

  async def _ask_all(self, openai, questions, parse, heard):
    key, gate = self._key(), asyncio.Semaphore(self.concurrency)
    # Shorter ones are stand-ins of local servers, and may be words.
    hide = lambda text: text.replace(key, '[key]') if len(key) >= 8 else text
    async with openai.AsyncOpenAI(
      base_url=self.url, api_key=key or 'none', timeout=self.timeout,
      max_retries=0,
    ) as client:  # fmt: skip

      async def one(index, messages):
        async with gate:
          answer = await self._ask_one(
            openai, client, hide, messages, lambda text: parse(index, text)
          )
        heard(index, answer)
        return answer

      # After a refusal nothing goes on asking: the client is closed at once,
      # and the loop ends.
      return await asyncio.gather(*map(one, range(len(questions)), questions))

  async def _ask_one(self, openai, client, hide, messages, parse):
    for attempt in range(1, self.attempts + 1):
      raw, wait = '', self.backoff * 2 ** (attempt - 1)
      await _bucket(self.url, self.rate).take()
      try:
        # The client's own limit is per read; a reply that trickles is late too.
        async with asyncio.timeout(self.timeout):
          reply = await client.chat.completions.create(
            model=self.model, messages=list(messages),
            max_tokens=self.max_tokens, temperature=self.temperature,
          )  # fmt: skip
        content = reply.choices[0].message.content
        if not isinstance(content, str):
          raise ValueError(f'{type(content).__name__} for a text')
        raw = hide(content)
        return Answer(parse(raw), raw, '', attempt)
      except (openai.APITimeoutError, TimeoutError):
        error = f'no answer within {self.timeout:g} s'
      except openai.APIStatusError as e:
        error = hide(f'status {e.status_code}: {_message(e)}')
        if e.status_code in _THIS_ONE:
          break
        if e.status_code not in _AGAIN and e.status_code < 500:
          # Not `from e`: its text is the server's, which may quote the key.
          raise UserError(
            f'{self.url} refuses the request with {error}; check the model '
            f'name {self.model!r} and the key in ${self.key_variable}'
          ) from None
        wait = max(wait, _seconds(e.response.headers.get('retry-after')))
      except openai.APIConnectionError as e:
        error = f'no connection ({type(e.__cause__ or e).__name__})'
      except (
        ValueError, TypeError, LookupError, AttributeError, RecursionError,
        openai.APIError,
      ) as e:  # fmt: skip
        error = hide(f'malformed answer: {e}')[:200]
      if attempt < self.attempts:
        await asyncio.sleep(wait)
    return Answer(None, raw, error, attempt)

  def _key(self) -> str:
    """The key, or '' if there is none."""
    key = os.environ.get(self.key_variable, '').strip()
    if not (key.isascii() and key.isprintable()):
      raise UserError(
        f'${self.key_variable} holds characters that no key has; set it again'
      )
    return key


@functools.cache
def _bucket(url: str, rate: float) -> '_Bucket':
  """One for all that this process asks there, in whichever call."""
  return _Bucket(rate)


class _Bucket:
  """A token bucket that holds one: `rate` requests a second, evenly.

  Tasks of one thread may share it: there is no await between reading and moving
  the time of the next request.
  """

  def __init__(self, rate: float):
    self._gap, self._next = (1 / rate if rate else 0.0), 0.0

  async def take(self) -> None:
    now = time.monotonic()
    start = max(self._next, now)
    self._next = start + self._gap
    if start > now:
      await asyncio.sleep(start - now)


def _seconds(header: str | None) -> float:
  try:
    return min(float(header or 0), 60.0)
  except ValueError:  # A date, which is rare; the backoff will do.
    return 0.0


def _message(error) -> str:
  """The endpoint's own words; never the request, which carries the key."""
  if error.status_code == 401:  # Servers quote the key here, or parts of it.
    return 'the key is not accepted'
  body = error.body if isinstance(error.body, dict) else {}
  return str(body.get('message') or 'no message')[:200]
