r"""Full training steps compared with PyTorch, and with this project's model on plain operators.

    python benchmarks/step.py
    python benchmarks/step.py --cases=convmixer_128_4,resnet_2 --rounds=9 \
        --out=results/benchmarks/step_cpu.json
    python benchmarks/step.py --plain --rounds=2

A step is forward, cross-entropy, backward and AdamW on one fixed batch. Ours is
`steps.train_step`, jitted as in training. PyTorch's models are the ConvMixer as published
by its authors, the usual pre-activation ResNet with convolutions grouped by channel, and timm's
meta-formers, in channels_last, eager and, with --compile, also under torch.compile. In Chans the
spatial weights of both are frozen (PyTorch: requires_grad False), except queries and keys of timm's
ViT, which share a tensor with the values. On a GPU both compute in bfloat16, unless --precision
says otherwise; both have TF32 products in float32 there, as JAX has by default. --plain adds the
same model with XLA's grouped convolutions and JAX's own differentiation.

Each runs in its own process, as in real use, so that they share neither allocator nor threads. They
alternate, one at a time. On a CPU PyTorch runs twice: with its defaults, and with the host settings
of our runs (`runtime.host`), from which it also gains: "tuned". `vs torch` is our time divided by
PyTorch's faster time with its defaults, `vs tuned torch` by its faster time with those settings,
and `vs our full` by the time of our own Full step.

The steps of both frameworks stand in this one file, so that it shows that they do the same; hence
its length.
"""

import contextlib
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import timing
from absl import app, flags

from randmix.runtime import host

# The PyTorch twins that the parity tests compare with.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))

CONVMIXER = {"name": "convmixer", "activation": "gelu"}
METAFORMER = {"name": "metaformer", "patch_size": 4}
VIT = {**METAFORMER, "patch_size": 16}
# name: (data set, for its image size; the model; batch size on a CPU, on a GPU)
CASES = {
    "convmixer_128_4": (
        "cifar10",
        {**CONVMIXER, "width": 128, "depth": 4, "kernel_size": 8, "patch_size": 1},
        (32, 512),
    ),
    "convmixer_256_8": (
        "cifar10",
        {**CONVMIXER, "width": 256, "depth": 8, "kernel_size": 5, "patch_size": 2},
        (32, 512),
    ),
    "convmixer_512_8": (
        "imagenet2012",
        {**CONVMIXER, "width": 512, "depth": 8, "kernel_size": 8, "patch_size": 7},
        (4, 128),
    ),
    "resnet_2": (
        "cifar10",
        {"name": "resnet", "width": 16, "depth": 2, "multiplier": 9},
        (128, 512),
    ),
    "vit_tiny": (
        "imagenet2012",
        {**VIT, "mixer": "attention", "width": 192, "depth": 12, "head_dim": 64},
        (4, 128),
    ),
    "mixer_s16": (
        "imagenet2012",
        {**VIT, "mixer": "token_mlp", "width": 512, "depth": 8},
        (4, 128),
    ),
    "poolformer_s12": (
        "imagenet2012",
        {
            **METAFORMER,
            "mixer": "pooling",
            "width": 64,
            "depth": 12,
            "stages": (1, 2, 5, 8),
            "norm": "group",
            "layer_scale": 1e-5,
        },
        (4, 128),
    ),
    "tiny": (
        "cifar10",
        {**CONVMIXER, "width": 8, "depth": 1, "kernel_size": 3, "patch_size": 4},
        (4, 4),
    ),
}
# timm's meta-formers by mixer, and the names of their spatial parameters.
TIMM = {
    "attention": ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}),
    "token_mlp": ("mixer_s16_224", {}),
    "pooling": ("poolformer_s12", {}),
}
TIMM_SPATIAL = ("patch_embed", "pos_embed", "stem", "mlp_tokens", "downsample")

MODES = ("full", "chans")

flags.DEFINE_list(
    "cases",
    [name for name in CASES if name != "tiny"],  # it shows that this runs, but no speed
    f"Cases to measure, of {', '.join(CASES)}.",
)
flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1)
flags.DEFINE_integer("calls", 2, "Steps per round.", lower_bound=1)
flags.DEFINE_integer(
    "batch_size", None, "Examples per step; by default each case's own.", lower_bound=1
)
flags.DEFINE_enum(
    "precision",
    None,
    ["float32", "bfloat16"],
    "Arithmetic. Default: bfloat16 on a GPU, else float32.",
)
flags.DEFINE_bool("compile", False, "Also time torch.compile, which takes minutes to compile.")
flags.DEFINE_bool(
    "plain", False, "Also time our model with plain operators: 5 to 20 times slower on a CPU."
)
flags.DEFINE_string("out", None, "JSON file to write the table to.")


def main(argv):
    # Each JAX process would take most of a GPU's memory at its start, and PyTorch needs some too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    options = flags.FLAGS
    rows = []
    for name in options.cases:
        with contextlib.ExitStack() as stack:

            def start(framework, name=name, stack=stack, **settings):
                settings["precision"] = options.precision
                return stack.enter_context(Peer(framework, name, options.batch_size, **settings))

            ours = start("ours")
            gpu = ours.backend == "gpu"
            peers = {"ours": ours}
            for framework in ("torch", "torch.compile")[: 1 + options.compile]:
                peers[framework] = start(framework, gpu=gpu, tuned=False)
                if not gpu:
                    peers[f"tuned {framework}"] = start(framework, gpu=gpu)
            if options.plain:
                peers["plain"] = start("plain")
            steps = {
                f"{peer} {mode}": functools.partial(process.take, mode)
                for mode in MODES
                for peer, process in peers.items()
            }
            seconds = timing.in_turn(steps, rounds=options.rounds, calls=options.calls)
        batch_size = options.batch_size or CASES[name][2][gpu]
        rows += [row(name, mode, batch_size, [*peers], seconds) for mode in MODES]
        print(rows[-2], rows[-1], sep="\n", flush=True)
        timing.save(rows, options.out)  # in case that a later one fails
    timing.report(rows, options.out)


def row(
    name: str, mode: str, batch_size: int, peers: list[str], seconds: timing.Seconds
) -> dict[str, object]:
    """A row of the table."""
    found = {"case": name, "mode": mode, "batch": batch_size}
    found |= {f"{peer} ms": timing.milliseconds(seconds[f"{peer} {mode}"]) for peer in peers}
    for prefix in ("", "tuned "):
        ratios = [
            timing.ratio(seconds, f"ours {mode}", f"{peer} {mode}")
            for peer in peers
            if peer in (f"{prefix}torch", f"{prefix}torch.compile")
        ]
        if ratios:
            found[f"vs {prefix}torch"] = round(max(ratios), 3)
    if "plain" in peers:
        found["plain vs ours"] = round(timing.ratio(seconds, f"plain {mode}", f"ours {mode}"), 1)
    found["vs our full"] = round(timing.ratio(seconds, f"ours {mode}", "ours full"), 3)
    return found


class Peer:
    """A process that takes training steps on request.

    Attributes:
        backend: JAX's backend; None for PyTorch.
    """

    def __init__(
        self,
        framework: str,
        case: str,
        batch_size: int | None,
        *,
        gpu: bool = False,
        tuned: bool = True,
        precision: str | None = None,
    ):
        """Starts the process.

        Args:
            framework: "ours", "plain", "torch" or "torch.compile".
            case: a name in ``CASES``.
            batch_size: None for the case's own.
            gpu: whether PyTorch uses the GPU; JAX decides for itself.
            tuned: whether to apply our host settings first.
            precision: "float32" or "bfloat16"; None for bfloat16 on a GPU and float32 elsewhere.
        """
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child = spawn.Pipe()
        self._process = spawn.Process(
            target=serve,
            args=(child, framework, case, batch_size, gpu, tuned, precision),
            daemon=True,
        )
        self._process.start()
        child.close()  # so that the pipe closes when the process ends
        self.backend: str | None = self._answer()

    def take(self, mode: str) -> None:
        """Takes a step and waits for it; the first step of a mode compiles."""
        self._pipe.send(mode)
        self._answer()

    def _answer(self) -> str | None:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit("a benchmark process failed; see its output above") from None

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.close()  # ends the process, which is idle
        self._process.join()


def serve(
    pipe: Connection,
    framework: str,
    case: str,
    batch_size: int | None,
    gpu: bool,
    tuned: bool,
    precision: str | None,
) -> None:
    """Main function of a ``Peer``'s process: takes a step for each mode received."""
    if tuned:
        host.tune()
    backend = None
    if framework in ("ours", "plain"):
        import jax

        backend = jax.default_backend()
        gpu = backend == "gpu"
    dataset, model, batch_sizes = CASES[case]
    steps = {}
    pipe.send(backend)
    while mode := _next(pipe):
        if mode not in steps:
            config = make_config(dataset, model, mode, batch_size or batch_sizes[gpu], gpu)
            config.precision = precision or config.precision
            if framework.startswith("torch"):
                steps[mode] = torch_step(config, compiled=framework == "torch.compile", gpu=gpu)
            else:
                with plain_operators() if framework == "plain" else contextlib.nullcontext():
                    steps[mode] = our_step(config)
        steps[mode]()
        pipe.send(None)


def _next(pipe: Connection) -> str | None:
    """Receives the mode of the next step; None at the end."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def make_config(dataset, model, mode, batch_size, gpu):
    """Builds the config of a run."""
    from randmix.config import default

    config = default(model["name"])
    config.model.update(model)
    config.data.name, config.mode, config.batch_size, config.steps = dataset, mode, batch_size, 1000
    config.optimizer.weight_decay = 0.005
    config.precision = "bfloat16" if gpu else "float32"
    return config


def random_batch(config):
    """Random images [N, H, W, C] float32 in [0, 1) and labels [N] int32, as NumPy arrays."""
    import numpy as np

    from randmix.data import catalog

    data_set, rng = catalog.get(config.data.name), np.random.default_rng(0)
    images = rng.random((config.batch_size, *data_set.image_shape), np.float32)
    return images, rng.integers(0, data_set.num_classes, config.batch_size, np.int32)


def our_step(config) -> Callable[[], object]:
    """Returns a function that takes this project's training step and waits for it."""
    import jax

    from randmix.training import runs, steps

    parts = runs.assemble(config)
    images, labels = random_batch(config)
    batch = jax.device_put({"image": images, "label": labels})
    step = functools.partial(
        steps.train_step,
        model=parts.step.model,
        task=parts.step.task,
        optimizer=parts.step.phases[0].optimizer,
        labels=parts.step.labels,
    )
    state = jax.jit(parts.init_state)(0)
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()

    def take():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(metrics)

    return take


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Context in which models use XLA's grouped convolution and JAX's own differentiation."""
    from randmix.models import layers
    from randmix.ops import act_norm, separable
    from randmix.ops.depthwise import grouped

    def depthwise(x, kernel, *, stride=1, method="auto"):
        return grouped(x, kernel.reshape(*kernel.shape[:3], -1), stride)

    def plain(reference):
        def by_batch(x, scale, bias, *, offset=None, shift=None, **options):
            return reference(
                x if offset is None else x + offset.astype(x.dtype), scale, bias, **options
            )

        return staticmethod(by_batch)

    with (
        mock.patch.object(layers, "depthwise", depthwise),
        mock.patch.object(separable, "depthwise", depthwise),
        mock.patch.object(layers, "separable", separable.separable_reference),
        mock.patch.object(layers.ActNorm, "by_batch", plain(act_norm.act_norm_reference)),
        mock.patch.object(layers.NormAct, "by_batch", plain(act_norm.norm_act_reference)),
    ):
        yield


def torch_model(config):
    """Returns the model in PyTorch, and its spatial parameters."""
    import torch_twins

    from randmix.data import catalog

    classes = catalog.get(config.data.name).num_classes
    if config.model.name == "metaformer":
        import timm

        name, more = TIMM[config.model.mixer]
        module = timm.create_model(name, num_classes=classes, **more)
        named = module.named_parameters()
        return module, [tensor for path, tensor in named if any(p in path for p in TIMM_SPATIAL)]
    sizes = {"channels": 3, "num_classes": classes}
    if config.model.name == "convmixer":
        keys = ("width", "depth", "kernel_size", "patch_size", "activation")
        module = torch_twins.conv_mixer(**sizes, **{key: config.model[key] for key in keys})
        places = torch_twins.conv_mixer_places(module, config.model.depth)
    else:
        keys = ("width", "depth", "kernel_size", "multiplier", "between", "stem")
        module = torch_twins.PreActResNet(**sizes, **{key: config.model[key] for key in keys})
        places = torch_twins.resnet_places(module)
    spatial = [part for place, part in places.items() if place.startswith("spatial/")]
    return module, [tensor for part in spatial for tensor in part.parameters()]


def torch_step(config, *, compiled: bool, gpu: bool) -> Callable[[], object]:
    """Returns a function that takes the same step in PyTorch."""
    import torch
    from torch.nn import functional

    torch.manual_seed(0)
    device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
    if device == "cpu":  # as XLA; by default as many as there are physical cores
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    if gpu:
        torch.set_float32_matmul_precision("high")  # TF32, as JAX by default
        torch.backends.cudnn.benchmark = True  # XLA, too, times its convolutions and takes the best
    module, spatial = torch_model(config)
    module = module.to(device, memory_format=torch.channels_last).train()
    if config.mode == "chans":
        for parameter in spatial:
            parameter.requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.005, fused=True)
    images, labels = (torch.from_numpy(array).to(device) for array in random_batch(config))
    images = images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    labels = labels.long()
    model = torch.compile(module) if compiled else module

    def take():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            loss = functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return take


if __name__ == "__main__":
    app.run(main)
