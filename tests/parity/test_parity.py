"""Both families against their PyTorch twins: logits, statistics, gradients, optimizer steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import torch
import torch_twins as twins
from closeness import assert_close, distance, errors

from randmix import config as configs
from randmix import masks, models
from randmix.models import counts
from randmix.training import runs, steps

# PyTorch warns that "same" padding of even kernels may copy.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:Using padding='same'")]

BATCH, CLASSES = 6, 10
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
CONVMIXER = {"width": 6, "depth": 2, "kernel_size": 3, "patch_size": 1, "activation": "gelu"}
RESNET = {
    "width": 4,
    "depth": 1,
    "kernel_size": 3,
    "multiplier": 3,
    "between": "none",
    "stem": "cifar",
}
CASES = {
    "convmixer": ("convmixer", (8, 8, 3), {"patch_size": 2}),
    "convmixer, even kernel, relu, gray": (
        "convmixer",
        (7, 9, 1),
        {"kernel_size": 4, "activation": "relu"},
    ),
    "convmixer, kernel larger than the image": ("convmixer", (5, 6, 3), {"kernel_size": 9}),
    "resnet": ("resnet", (9, 8, 3), {"depth": 2, "multiplier": 9}),
    "resnet, norm and relu between": ("resnet", (8, 8, 1), {"between": "bn_relu"}),
    "resnet, norm between, larger kernel": (
        "resnet",
        (8, 8, 3),
        {"between": "bn", "kernel_size": 5},
    ),
    "resnet, relu between": ("resnet", (8, 8, 3), {"between": "relu", "multiplier": 2}),
    "resnet, imagenet": ("resnet", (33, 32, 3), {"stem": "imagenet"}),
}


# Images like the digits, so that a config builds the optimizer.
STEPPED = {
    "adamw": ("convmixer", (8, 8, 1), {"patch_size": 2}),
    "sgd": ("resnet", (8, 8, 1), {"multiplier": 9}),
    "sgd, two steps": ("resnet", (8, 8, 1), {"between": "bn_relu"}),
}


class Pair:
    """A randmix model and its twin with equal weights, and a batch."""

    def __init__(self, family, shape, overrides, dtype="float32"):
        self.family = family
        self.arguments = arguments = {
            **(CONVMIXER if family == "convmixer" else RESNET),
            **overrides,
        }
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.mean, self.std = MEAN[: shape[-1]], STD[: shape[-1]]
        self.model = models.build(
            self.family, num_classes=CLASSES, dtype=dtype, mean=self.mean, std=self.std, **arguments
        )
        twin = {"convmixer": twins.conv_mixer, "resnet": twins.PreActResNet}[self.family]
        self.twin = twin(channels=shape[-1], num_classes=CLASSES, **arguments)
        twins.randomize_norms(self.twin, generator)
        if self.family == "convmixer":
            self.places = twins.conv_mixer_places(self.twin, arguments["depth"])
        else:
            self.places = twins.resnet_places(self.twin)
        self.params, self.batch_stats = (
            twins.parameters(self.places),
            twins.batch_stats(self.places),
        )
        self.images = torch.rand((BATCH, *shape), generator=generator)
        self.labels = torch.randint(CLASSES, (BATCH,), generator=generator)

    @property
    def batch(self):
        return {"image": self.images.numpy(), "label": self.labels.numpy().astype(np.int32)}

    def logits(self):
        images = (self.images - torch.tensor(self.mean)) / torch.tensor(self.std)
        return self.twin(images.permute(0, 3, 1, 2))

    def backward(self):
        """The twin's logits in training; the pass sets its gradients and statistics."""
        self.twin.train()
        logits = self.logits()
        torch.nn.functional.cross_entropy(logits, self.labels).backward()
        return logits.detach().float().numpy()


@functools.partial(jax.jit, static_argnums=0)
def all_outputs(model, params, batch_stats, batch):
    """Evaluation logits, training logits, statistics after the batch, and all gradients."""

    def loss(params):
        variables = {**params, "batch_stats": batch_stats}
        logits, updates = model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), (logits, updates["batch_stats"])

    evaluated = model.apply({**params, "batch_stats": batch_stats}, batch["image"])
    gradients, (logits, batch_stats) = jax.grad(loss, has_aux=True)(params)
    return {"eval": evaluated, "train": logits}, batch_stats, gradients


@pytest.mark.parametrize("case", CASES)
def test_a_step_computes_what_pytorch_computes(case):
    pair = Pair(*CASES[case])
    logits, batch_stats, gradients = all_outputs(
        pair.model, pair.params, pair.batch_stats, pair.batch
    )
    pair.twin.eval()
    expected = {"eval": pair.logits().detach().numpy(), "train": pair.backward()}
    assert_close(logits, expected, 1e-5)
    assert_close(batch_stats, twins.batch_stats(pair.places), 1e-5)
    assert_close(gradients, twins.parameters(pair.places, gradients=True), 1e-4)


@pytest.mark.parametrize("case", ["convmixer", "resnet"])
def test_bfloat16_is_as_near_to_float32_as_pytorchs(case):
    """Small batches' BatchNorms magnify 2^-9 to some ten percent of a gradient, in PyTorch too."""
    pair, rounding = Pair(*CASES[case], dtype="bfloat16"), Pair(*CASES[case])
    logits, batch_stats, gradients = all_outputs(
        pair.model, pair.params, pair.batch_stats, pair.batch
    )
    pair.twin.eval()
    expected = {"eval": pair.logits().detach().numpy(), "train": pair.backward()}
    assert_close(logits, expected, 0.02)
    assert_close(batch_stats, twins.batch_stats(pair.places), 1e-3)
    exact = twins.parameters(pair.places, gradients=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounding.backward()
    allowed = 2.5 * distance(twins.parameters(rounding.places, gradients=True), exact)
    assert 0 < distance(gradients, exact) < min(allowed, 0.5)
    assert max(errors(logits, expected).values()) > 1e-4  # it is bfloat16


def torch_optimizer(settings, places, frozen_role):
    """PyTorch's optimizer, with weight decay on kernels alone, without the frozen role."""
    kernels, others = [], []
    for path, tensor in twins.tensors(places).items():
        if path.startswith(f"{frozen_role}/"):
            tensor.requires_grad_(False)
        else:
            (kernels if path.endswith("kernel") else others).append(tensor)
    groups = [
        {"params": kernels, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0},
    ]
    if settings.name == "adamw":
        betas = (settings.b1, settings.b2)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=settings.eps)
    momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
    return torch.optim.SGD(groups, lr=settings.learning_rate, **momentum)


@pytest.mark.parametrize("mode", ["full", "chans"])
@pytest.mark.parametrize("case", STEPPED)
def test_three_training_steps_end_where_pytorchs_end(case, mode):
    pair = Pair(*STEPPED[case])
    config = configs.default(pair.family)
    config.mode = mode
    config.model.update(**pair.arguments, mean=pair.mean, std=pair.std)
    config.optimizer.name = case.partition(",")[0]
    # At 0.1 these small models cross so many kinks that PyTorch's float32 departs from its float64.
    config.optimizer.learning_rate = {"adamw": 0.003, "sgd": 0.02}[config.optimizer.name]
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "constant"
    parts = runs.assemble(config)
    optimizer = parts.step.phases[0].optimizer
    state = steps.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=pair.params,
        batch_stats=pair.batch_stats,
        opt_state=optimizer.init(masks.partition(pair.params, parts.step.labels)[0]),
        totals=steps.empty_totals(),
        failed_step=steps.never_failed(),
    )
    step = jax.jit(small.step_of(parts))
    frozen_role = {"full": None, "chans": "spatial"}[mode]
    twin_optimizer = torch_optimizer(config.optimizer, pair.places, frozen_role)
    for _ in range(3):
        state, _ = step(state, pair.batch)
        twin_optimizer.zero_grad()
        pair.backward()
        twin_optimizer.step()
    expected = twins.parameters(pair.places)
    assert_close(state.params, expected, 1e-5)
    assert_close(state.batch_stats, twins.batch_stats(pair.places), 1e-5)
    # Compare the moves too: a parameter may be near because it hardly moved.
    moves = [jax.tree.map(np.subtract, after, pair.params) for after in (state.params, expected)]
    assert_close(*moves, 1e-3)
    frozen = [path for path in masks.paths(pair.params) if path.startswith(f"{frozen_role}/")]
    assert sorted(masks.diff(pair.params, jax.device_get(state.params)).unchanged) == sorted(frozen)


@pytest.mark.parametrize("case", CASES)
def test_multiply_adds_are_those_of_pytorchs_counter(case):
    from torch.utils.flop_counter import FlopCounterMode

    pair = Pair(*CASES[case])
    pair.twin.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair.logits()
    per_image = counts.multiply_adds(pair.model, tuple(pair.images.shape[1:]))
    assert 2 * BATCH * sum(per_image.values()) == counter.get_total_flops()
