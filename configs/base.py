"""Every field of a run, with its meaning. Other configs set a few of them.

The config is locked: a field that is not here cannot be set, so a slip of the
pen stops the program instead of being ignored.
"""

from ml_collections import ConfigDict

from alignment_rl.scenarios import schema


def stream(
  module: str,
  *,
  reward: str = '',
  weight: float = 0.0,
  fraction: float = 0.0,
  schedule: str = 'constant',
  kwargs: dict | None = None,
  reward_kwargs: dict | None = None,
) -> ConfigDict:
  """One entry of `config.streams`."""
  return ConfigDict(
    {
      'module': module,  # file of alignment_rl/streams/
      'kwargs': ConfigDict(kwargs or {}),  # arguments of its make()
      'reward': reward,  # file of alignment_rl/rewards/; '' = demonstrations
      'reward_kwargs': ConfigDict(reward_kwargs or {}),
      'weight': weight,  # > 0: a base stream, share in proportion to the others
      'fraction': fraction,  # an overlay: share of all slots that it replaces
      'schedule': schedule,  # constant | ramp | burst: its share over the run
    }
  )


def gold(
  stream: str, reward: str, *, weights: str = '', kwargs: dict | None = None
) -> ConfigDict:
  """One entry of `config.gold`."""
  return ConfigDict(
    {
      'stream': stream,  # key of config.streams whose completions it reads
      'reward': reward,  # file of alignment_rl/rewards/
      'kwargs': ConfigDict(kwargs or {}),  # arguments of its make()
      'weights': weights,  # its own judge; '' = that of config.judge
    }
  )


def traits(**kwargs) -> ConfigDict:
  """The trait scenarios as a stream, with every argument of its make()."""
  every = {
    'split': 'train',
    'traits': schema.TRAITS,  # leave some out: an arm
    'domains': schema.DOMAINS,
    'target': 'beneficial',  # of demonstrations; 'violating' is the attack
    'system': '',  # a system message; '' = the model's own template decides
  }
  return stream('traits', kwargs=every, **kwargs)


# Of the configs that have them: what `for_pod` sets.
POD_VARIANTS = ('llama3_8b', 'llama3_70b')


def for_pod(c: ConfigDict, variant: str) -> None:
  """Sizes, layout and batch of a run on a TPU pod; of a locked config.

  Full updates in float32 masters with Adam: 8B wants 16 chips of 32 GB (v6e) or
  more, 70B 128 of 95 GB (v5p). `python -m alignment_rl.preflight` checks it.
  """
  large = variant == 'llama3_70b'
  # Sizes alone, of which preflight makes a plan. Give the Hugging Face folder
  # of the weights: --config.model.weights=FOLDER.
  c.model.weights = f'random:llama3.1_{"70b" if large else "8b"}'
  c.model.dtype, c.model.remat = 'bfloat16', 'block'
  c.judge.dtype = 'bfloat16'
  # Updates gather parameters once a micro-batch; sampling would gather them at
  # every token, so that it holds them along tensor instead.
  c.mesh.update(data=-1, fsdp=32 if large else 16, tensor=4 if large else 1)
  c.mesh.rollout.update(data=-1, fsdp=1, tensor=8 if large else 4)
  c.batch.update(
    prompts=256, group=8, prompt_length=1024, prompt_buckets=(256, 512),
    completion_length=1024, micro_batches=8,
  )  # fmt: skip
  c.judge.rows = 64
  c.optimizer.learning_rate = 1e-6
  c.optimizer.warmup = 10
  c.steps = 200
  c.checkpoint.every = 25


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of the mixture, the samples and random weights
  c.steps = 100  # steps of sample, reward, update

  c.model = ConfigDict()
  c.model.module = 'llama'  # file of alignment_rl/models/
  c.model.weights = (
    'random:tiny'  # random:VARIANT | package:NAME | .gguf | folder
  )
  c.model.dtype = 'float32'  # inputs of matrix products: 'float32' | 'bfloat16'
  # what the backward pass computes again to hold less: 'none' | 'block', each
  # block | 'dots', all but its products with weights
  c.model.remat = 'none'
  # 'einsum' | 'splash', the kernel for TPUs | 'auto', the kernel where it pays
  c.model.attention = 'auto'
  # of the products that add tokens to a rollout; '' = as dtype
  c.model.sample_dtype = ''
  # LoRA: adapters of this rank learn, the weights stay; 0 = none
  c.model.lora_rank = 0
  c.model.lora_alpha = 32.0  # adapters count alpha / rank times
  c.model.lora_targets = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')

  c.mesh = ConfigDict()  # devices along each axis; -1 fills one of them
  c.mesh.data = -1  # rows
  c.mesh.fsdp = 1  # rows, and parameters along embed
  c.mesh.tensor = 1  # parameters along heads, mlp, vocab
  # slices of a pod (or processes) that the data axis is split over, so that no
  # other axis crosses the slow network between them; -1 = as the devices say
  c.mesh.slices = 1
  # the same devices while completions are sampled; all 0 = as for updates. Few
  # devices along tensor: every token waits for them
  c.mesh.rollout = ConfigDict({'data': 0, 'fsdp': 0, 'tensor': 0})

  c.batch = ConfigDict()
  c.batch.prompts = 8  # B, prompts per step over all devices
  c.batch.group = 8  # G, completions per prompt
  # completions drawn per prompt, of which the G that differ most in reward are
  # learned from; 0 = G
  c.batch.samples = 0
  c.batch.prompt_length = 160  # P, tokens
  # lengths below P: a step's prompts are padded to the first that holds them
  # all; each is compiled once
  c.batch.prompt_buckets = ()
  c.batch.completion_length = 64  # C, tokens
  c.batch.micro_batches = 1  # gradient accumulation: parts of B

  c.streams = ConfigDict()  # name -> stream(...)

  # name -> gold(...): rewards that are logged and never trained on, so that
  # over-optimisation shows
  c.gold = ConfigDict()

  c.judge = ConfigDict()  # the frozen model that rewards read with
  c.judge.weights = ''  # '' = the policy's own start
  c.judge.dtype = 'float32'  # inputs of its matrix products
  c.judge.rows = 8  # replies read at a time

  c.algorithm = ConfigDict()
  c.algorithm.name = 'dr_grpo'  # grpo | dr_grpo | rloo | ppo | sft
  c.algorithm.epochs = 1  # updates on each batch of rollouts
  c.algorithm.temperature = 1.0  # of sampling and of the trained policy
  c.algorithm.clip_low = 0.2  # ratio is clipped to [1 - low, 1 + high]
  c.algorithm.clip_high = 0.2
  # Coefficient of the KL to the reference, per nat. With 0, sft does not read
  # the reference, and its `kl` is unknown.
  c.algorithm.kl = 0.05
  c.algorithm.kl_in = 'loss'  # 'loss' (k2 per token) | 'reward' (k1)
  # prompts of each stream that the reference answers before the first step: its
  # rewards then have mean 0 and spread 1 there; 0 = rewards as they are
  c.algorithm.scale_prompts = 0
  c.algorithm.skip_zero_spread = False  # groups with equal rewards add nothing
  c.algorithm.value = 0.5  # ppo: coefficient of the value loss
  c.algorithm.value_clip = 0.2  # ppo: trust region of the value
  c.algorithm.discount = 1.0  # ppo: gamma, per token
  c.algorithm.trace = 0.95  # ppo: lambda of GAE

  c.optimizer = ConfigDict()
  c.optimizer.name = 'adamw'  # adamw | adafactor | lion | sgd
  c.optimizer.learning_rate = 1e-5  # peak
  c.optimizer.schedule = 'constant'  # constant | linear | cosine
  c.optimizer.warmup = 0  # updates of linear warm-up
  c.optimizer.clip_norm = 1.0  # global gradient norm; 0 = no clipping
  c.optimizer.weight_decay = 0.0
  c.optimizer.b1 = 0.9
  c.optimizer.b2 = 0.99
  # regular expression over paths as 'layers/q'; with LoRA over adapters, as
  # 'layers/q_lora/a', and ppo's value head learns too
  c.optimizer.trainable = '.*'

  c.checkpoint = ConfigDict()
  c.checkpoint.every = 50  # steps
  c.checkpoint.keep = 2  # newest ones

  c.log = ConfigDict()
  c.log.every = 1  # steps between lines of metrics
  c.log.gold_every = 0  # steps between readings of config.gold; 0 = never
  c.log.rollouts_every = 10  # steps between logged rollouts; 0 = never
  c.log.gradient_every = (
    10  # steps between per-stream gradient norms; 0 = never
  )

  c.reward_model = ConfigDict()  # read by reward_train alone
  c.reward_model.batch = 2  # scenarios per step, three replies each
  c.reward_model.length = 512  # tokens of conversation, reply and statement
  c.reward_model.layers = 0  # upper layers that learn; 0 = all
  c.reward_model.scale = 2.0  # nats of contrast that make odds of e
  c.reward_model.helpfulness = 0.25  # share of steps on the generic criteria
  c.reward_model.leave_out = ''  # such as 'domain=health', 'voice=terse'
  return c.lock()
