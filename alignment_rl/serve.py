"""A checkpoint behind the OpenAI protocol, for every client that speaks it.

  python -m alignment_rl.serve --checkpoint=DIR

DIR is a workdir of `train`, a Hugging Face folder, a .gguf file or
package:NAME. Serves /v1/chat/completions, /v1/completions and /v1/models on
this machine alone, unless --host says otherwise. With a key in the environment
variable ALIGNMENT_RL_SERVE_KEY, only who knows it is served. Needs the extra
`serve` (starlette, uvicorn).
"""

import asyncio
import contextlib
import dataclasses
import functools
import hmac
import logging
import os
import pathlib
import socket

from absl import flags

from alignment_rl import config as config_lib
from alignment_rl import learner, serving, sharding, wire
from alignment_rl.answering import Gone, Service
from alignment_rl.errors import UserError
from alignment_rl.models.decoder import DTYPES
from alignment_rl.wire import Problem

_FLAGS = flags.FLAGS

KEY_VARIABLE = 'ALIGNMENT_RL_SERVE_KEY'

_GRACE = 30  # Seconds that running requests have when the server is stopped.
# Seconds that an idle connection stays: longer than clients keep theirs (5), or
# a request would now and then meet one that is just being closed.
_KEEP_ALIVE = 60


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may take of the server.

  Attributes:
    body: bytes.
    seconds: in which the body must have come.
  """

  body: int = 8 << 20
  seconds: float = 60.0


def make_app(service: Service, key: str = '', limits: Limits = Limits()):
  """The ASGI application. It closes the engine when it ends.

  Args:
    key: what clients must show; '' = nothing.
  """
  need = lambda name: config_lib.need(f'starlette.{name}', 'serve')
  Route, responses = need('routing').Route, need('responses')

  def reply(body, status=200, headers=None):
    data = body if isinstance(body, bytes) else wire.write_json(body)
    return responses.Response(
      data, status, headers, media_type='application/json'
    )

  def guarded(endpoint):
    @functools.wraps(endpoint)
    async def checked(request):
      scheme, _, shown = request.headers.get('authorization', '').partition(' ')
      known = hmac.compare_digest(shown.encode(), key.encode())
      if key and not (known and scheme.lower() == 'bearer'):
        raise Problem(
          401, 'the key is missing or wrong', code='invalid_api_key'
        )
      return await endpoint(request)

    return checked

  def asked(read):
    @guarded
    async def endpoint(request):
      body = await _body(request.receive, limits)
      found = await service.answer(read(wire.read_json(body)), request.receive)
      return reply(found) if isinstance(found, bytes) else found

    return endpoint

  @guarded
  async def models(request):
    return reply({'object': 'list', 'data': [service.model(service.name)]})

  @guarded
  async def model(request):
    return reply(service.model(request.path_params['name']))

  async def problem(request, error):
    # The rest of a body that is not read must not be taken for a request.
    unread = error.status in (408, 413)
    headers = {'connection': 'close'} if unread else {}
    if error.status == 503:
      headers['retry-after'] = '1'
    return reply(error.body(), error.status, headers)

  async def http_error(request, error):
    found = Problem(
      error.status_code, f'{request.method} {request.url.path}: {error.detail}'
    )
    return reply(found.body(), error.status_code, error.headers)

  async def gone(request, error):
    return responses.Response(status_code=499)  # To nobody.

  async def own_mistake(request, error):
    return reply(
      Problem(500, 'the server failed; its log says why').body(), 500
    )

  @contextlib.asynccontextmanager
  async def lifespan(app):
    yield
    await asyncio.to_thread(service.engine.close)

  return need('applications').Starlette(
    routes=[
      Route('/v1/models', models, methods=['GET']),
      Route('/v1/models/{name:path}', model, methods=['GET']),
      Route('/v1/completions', asked(wire.read_completion), methods=['POST']),
      Route('/v1/chat/completions', asked(wire.read_chat), methods=['POST']),
    ],
    exception_handlers={
      Problem: problem,
      Gone: gone,
      need('exceptions').HTTPException: http_error,
      Exception: own_mistake,
    },
    lifespan=lifespan,
  )


async def _body(receive, limits: Limits) -> bytes:
  """The body of a request, read no further than the limits.

  Raises:
    Problem, Gone.
  """
  data, size, more = bytearray(), 0, True
  try:
    async with asyncio.timeout(limits.seconds):
      # What is a little too long is read on, so that who is still sending
      # comes to hear the answer.
      while more and size <= 4 * limits.body:
        message = await receive()
        if message['type'] == 'http.disconnect':
          raise Gone
        more, part = message.get('more_body', False), message.get('body', b'')
        size += len(part)
        if size <= limits.body:
          data += part
  except TimeoutError as e:
    raise Problem(
      408, f'the body did not come within {limits.seconds:g} s'
    ) from e
  if size > limits.body:
    raise Problem(413, f'the body is over {limits.body} bytes')
  return bytes(data)


def main() -> None:
  uvicorn = config_lib.need('uvicorn', 'serve')
  config_lib.need('starlette', 'serve')
  for name, least, most in (
    ('batch', 1, 2**16), ('context', 2, 2**24), ('queue', 1, 2**24),
    ('port', 0, 2**16 - 1),
  ):  # fmt: skip
    if not least <= _FLAGS[name].value <= most:
      raise UserError(
        f'--{name} is {_FLAGS[name].value}, expected {least} to {most}'
      )
  key, place = _key(), _bind(_FLAGS.host, _FLAGS.port)
  # All to stderr: whoever reads the address from stdout may read no further,
  # and a full pipe would stop the server.
  for name in ('alignment_rl', 'uvicorn'):
    log = logging.getLogger(name)
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False
  mesh = sharding.make_mesh({'data': -1, 'fsdp': 1, 'tensor': 1})
  model, params = learner.load(
    _FLAGS.checkpoint, mesh, family=_FLAGS.family, dtype=_FLAGS.dtype
  )
  engine = serving.Engine(
    model.decoder, params, model.tokenizer, mesh, batch=_FLAGS.batch,
    context=_FLAGS.context, queue=_FLAGS.queue,
  )  # fmt: skip
  name = _FLAGS.name or _name(_FLAGS.checkpoint)
  app = make_app(Service(engine, model, name), key)
  host, port = place.getsockname()[:2]
  if host not in ('127.0.0.1', '::1') and not key:
    logging.getLogger('alignment_rl').warning(
      'whoever reaches %s is served; set $%s to a key', host, KEY_VARIABLE
    )
  host = f'[{host}]' if ':' in host else host
  print(f'serving {name} at http://{host}:{port}/v1', flush=True)
  settings = uvicorn.Config(
    app, log_config=None, timeout_keep_alive=_KEEP_ALIVE,
    timeout_graceful_shutdown=_GRACE,
  )  # fmt: skip
  with contextlib.suppress(KeyboardInterrupt):
    uvicorn.Server(settings).run([place])


def _key() -> str:
  key = os.environ.get(KEY_VARIABLE, '')
  if not (key.isascii() and (key.isprintable() and ' ' not in key)):
    raise UserError(
      f'${KEY_VARIABLE} holds characters that no HTTP header carries; expected '
      'ASCII without spaces'
    )
  return key


def _bind(host: str, port: int) -> socket.socket:
  """Takes the address before the model is loaded, which is long."""
  try:
    (family, *_, address), *_ = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM
    )
    place = socket.socket(family, socket.SOCK_STREAM)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    place.bind(address)
  except OSError as e:
    raise UserError(
      f'cannot listen at --host={host} --port={port}: {e}; choose another port '
      '(0 = any that is free) or an address of this machine'
    ) from e
  return place


def _name(source: str) -> str:
  """The checkpoint's folder, or file, or package."""
  path = pathlib.Path(source.removeprefix('package:').removeprefix('random:'))
  return path.stem if path.suffix == '.gguf' else path.resolve().name


if __name__ == '__main__':
  flags.DEFINE_string('checkpoint', None, 'workdir, folder, .gguf or package:')
  flags.DEFINE_string('host', '127.0.0.1', 'address to listen at')
  flags.DEFINE_integer('port', 8000, '0 = any that is free')
  flags.DEFINE_string(
    'name', None, "the model's id; default: the folder's name"
  )
  flags.DEFINE_integer('batch', 8, 'completions written at a time')
  flags.DEFINE_integer('context', 2048, 'tokens of prompt and completion')
  flags.DEFINE_integer('queue', 256, 'prompts that may wait')
  flags.DEFINE_string('family', 'llama', 'file of alignment_rl/models/')
  flags.DEFINE_enum('dtype', 'float32', DTYPES, 'inputs of matrix products')
  config_lib.run(main, required=('checkpoint',))
