"""Requests of the OpenAI protocol to the engine, and its pieces to answers."""

import asyncio
import contextlib
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncIterator

import jinja2

from alignment_rl import serving, wire
from alignment_rl.checkpoint import Model
from alignment_rl.errors import UserError
from alignment_rl.serving import Piece
from alignment_rl.wire import Problem

# A longer text is refused before its tokens are counted, which takes time.
_CHARACTERS_PER_TOKEN = 64


class Gone(Exception):
  """The client has left: nobody hears the answer."""


class Service:
  """All that is between HTTP and the engine."""

  def __init__(self, engine: serving.Engine, model: Model, name: str):
    self.engine, self.name = engine, name
    self._tokenizer, self._vocab = model.tokenizer, model.config.vocab
    self._started = int(time.time())
    self._word = functools.cache(self._text_of)

  def model(self, name: str) -> dict:
    """What /v1/models says.

    Raises:
      Problem: it is not the model that is served.
    """
    if name != self.name:
      raise Problem(
        404, f'there is no model {name!r} here, only {self.name!r}', 'model',
        'model_not_found',
      )  # fmt: skip
    return {
      'id': name,
      'object': 'model',
      'created': self._started,
      'owned_by': 'alignment_rl',
    }

  async def answer(self, request: wire.Request, receive) -> 'bytes | Stream':
    """The answer in JSON; of a stream, once its first piece is there.

    Args:
      receive: of the ASGI protocol, when the body was read: tells that the
        client has left.

    Raises:
      Problem, Gone.
    """
    self.model(request.model)
    prompts = await asyncio.to_thread(self._encode, request)
    kind = 'cmpl' if request.chat is None else 'chatcmpl'
    answer = wire.Answer(
      request, f'{kind}-{secrets.token_hex(12)}', int(time.time()), self._word,
      sum(map(len, prompts)),
    )  # fmt: skip
    pieces = self._pieces(request, prompts, receive)
    if request.stream:
      return Stream(answer, await anext(pieces), pieces)
    choices = [[] for _ in range(len(prompts) * request.n)]
    async with contextlib.aclosing(pieces):
      async for index, piece in pieces:
        choices[index].append(piece)
    # In a thread: of many prompts with their log-probabilities it is long.
    whole = lambda: wire.write_json(answer.whole(choices))
    return await asyncio.to_thread(whole)

  async def _pieces(self, request, prompts, receive):
    """(choice, Piece) as they come; the choices of a prompt are neighbours."""
    n, ahead, done = request.n, [0] * len(prompts), request.max_tokens == 0
    async with _Call(self.engine, receive) as call:
      if request.echo:
        # The text of the tokens: without their control tokens.
        scored = None
        if request.logprobs is None:
          texts = [self._tokenizer.decode(tokens) for tokens in prompts]
          echoes = [Piece(text, (), 0, None) for text in texts]
        else:
          scored = await call.score(prompts, request.logprobs)
          echoes = [Piece(s.text, s.tokens, 0, None) for s in scored]
        ahead = [len(echo.text) for echo in echoes]
        for i in range(n * len(prompts)):
          finish = 'length' if done else None
          yield i, dataclasses.replace(echoes[i // n], finish=finish)
        # One greedy token was found on the way.
        one = (request.max_tokens, request.temperature) == (1, 0)
        if scored and one and not request.stop:
          done = True
          for i in range(n * len(prompts)):
            yield i, scored[i // n].next
      if not done:
        async for i, piece in call.complete(self._asks(request, prompts)):
          yield i, _shifted(piece, ahead[i // n])

  def _asks(self, request, prompts):
    seed = request.seed
    seed = secrets.randbits(64) if seed is None else seed % (1 << 64)
    room = self.engine.context
    return [
      serving.Ask(
        tokens=tokens,
        max_tokens=request.max_tokens or room - len(tokens),
        temperature=request.temperature,
        top_p=request.top_p,
        seed=seed,
        choice=choice,
        stop=request.stop,
        top=request.logprobs or 0,
      )
      for tokens in prompts
      for choice in range(request.n)
    ]

  def _encode(self, request):
    """Token ids of each prompt, all of which fit."""
    room = self.engine.context
    rows = max(1, len(request.prompts)) * request.n
    if rows > self.engine.queue:
      raise Problem(
        400, f'{rows} completions are asked for, over the {self.engine.queue} '
        'that may wait; ask for fewer at a time', 'n',
      )  # fmt: skip
    prompts, name = request.prompts, 'prompt'
    if request.chat is not None:
      said = sum(len(m.content) for m in request.chat)
      _check_size(said, room, 'messages')
      prompts, name = (self._chat(request.chat),), 'messages'
    out = []
    for prompt in prompts:
      if isinstance(prompt, str):
        _check_size(len(prompt), room, name)
        # Who writes the whole prompt may write its control tokens.
        prompt = tuple(self._tokenizer.encode(prompt, controls=True))
      if not prompt:
        raise Problem(400, f'{name} is empty; there is nothing to go on', name)
      # A request without a limit wants one token at least.
      wanted = 1 if request.max_tokens is None else request.max_tokens
      if len(prompt) + wanted > room:
        raise _too_long(f'{len(prompt)} + {wanted} tokens', room, name)
      if not all(0 <= token < self._vocab for token in prompt):
        raise Problem(
          400, f'{name} has a token outside of 0 to {self._vocab - 1}', name
        )
      out.append(prompt)
    return out

  def _chat(self, chat):
    try:
      return tuple(self._tokenizer.encode_chat(chat))
    except (UserError, jinja2.TemplateError) as e:
      raise Problem(400, str(e), 'messages') from e

  def _text_of(self, token):
    word = self._tokenizer.decode([token])
    return None if not word or '\ufffd' in word else word


class _Call:
  """The engine's work for one request; it ends with the request."""

  def __init__(self, engine, receive):
    self._engine, self._receive, self._entries = engine, receive, []

  async def __aenter__(self):
    self._loop, self._heard = asyncio.get_running_loop(), asyncio.Queue()
    self._watch = self._loop.create_task(self._until_gone())
    return self

  async def __aexit__(self, *error):
    self._watch.cancel()
    self._engine.cancel(self._entries)

  async def score(self, prompts, top):
    ears = self._ears(len(prompts))
    with _room():
      self._entries += self._engine.score(prompts, ears, top)
    found = dict([await self._next() for _ in prompts])
    return [found[i] for i in range(len(prompts))]

  async def complete(self, asks) -> AsyncIterator[tuple[int, Piece]]:
    with _room():
      self._entries += self._engine.complete(asks, self._ears(len(asks)))
    left = len(asks)
    while left:
      index, piece = await self._next()
      left -= piece.finish is not None
      yield index, piece

  async def _next(self):
    heard = await self._heard.get()
    if heard is None:
      raise Gone
    if isinstance(heard[1], serving.Failure):
      raise Problem(500, heard[1].message)
    return heard

  def _ears(self, n):
    return [functools.partial(self._hear, index) for index in range(n)]

  def _hear(self, index, item):
    # The loop is closed when a forced end does not wait for the engine.
    with contextlib.suppress(RuntimeError):
      self._loop.call_soon_threadsafe(self._heard.put_nowait, (index, item))

  async def _until_gone(self):
    while (await self._receive())['type'] != 'http.disconnect':
      pass
    self._heard.put_nowait(None)


@contextlib.contextmanager
def _room():
  try:
    yield
  except serving.Full as e:
    raise Problem(
      503, 'too many requests are waiting; try again', code='overloaded'
    ) from e


def _check_size(characters, room, name):
  if characters > room * _CHARACTERS_PER_TOKEN:
    raise _too_long(f'{characters} characters', room, name)


def _too_long(found, room, name):
  return Problem(
    400, f'{name} asks for {found}, over the context of {room} tokens', name,
    'context_length_exceeded',
  )  # fmt: skip


def _shifted(piece, characters):
  """The piece with its tokens' text beginning after so many characters."""
  tokens = tuple(
    dataclasses.replace(token, start=token.start + characters)
    for token in piece.tokens
  )
  return dataclasses.replace(piece, tokens=tokens)


class Stream:
  """An ASGI response: an answer as server-sent events."""

  def __init__(self, answer: wire.Answer, first, rest):
    self._answer, self._first, self._rest = answer, first, rest

  async def __call__(self, scope, receive, send):
    del scope, receive  # Who watches for the client's leaving is `_Call`.
    headers = [
      (b'content-type', b'text/event-stream; charset=utf-8'),
      (b'cache-control', b'no-cache'),
    ]
    async with contextlib.aclosing(self._rest):
      await send(
        {'type': 'http.response.start', 'status': 200, 'headers': headers}
      )
      with contextlib.suppress(Gone):
        async for event in self._events():
          body = b'data: ' + event + b'\n\n'
          await send(
            {'type': 'http.response.body', 'body': body, 'more_body': True}
          )
      await send({'type': 'http.response.body', 'body': b''})

  async def _events(self):
    counts = {}
    try:
      async for index, piece in self._pieces():
        if piece.text or piece.tokens or piece.finish or index not in counts:
          chunk = self._answer.chunk(index, piece, index not in counts)
          yield wire.write_json(chunk)
        counts[index] = piece.count
      if self._answer.request.usage:
        yield wire.write_json(self._answer.last(sum(counts.values())))
      yield b'[DONE]'
    except Problem as e:
      yield wire.write_json(e.body())

  async def _pieces(self):
    yield self._first
    async for piece in self._rest:
      yield piece
