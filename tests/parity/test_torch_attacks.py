"""Attacks on a ConvMixer against hand-written PyTorch and against foolbox."""

import warnings
from functools import partial

import jax
import numpy as np
import pytest
import torch
import torch_convmixers

import randmix
from randmix import attacks

with warnings.catch_warnings():  # foolbox imports a deprecated module of SciPy
    warnings.simplefilter("ignore")
    import foolbox

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_a_convmixer_against_pytorch_by_hand(activation):
    images, labels, twin, classifier = torch_pair(activation)
    x = clean = torch.tensor(images.transpose(0, 3, 1, 2))
    two = jax.jit(partial(attacks.ascent, classifier, steps=2))(images, labels, 8 / 255)
    for got in two[1:]:  # PGD-2 continues from FGSM
        x = x.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(
            twin(x), torch.tensor(labels).long(), reduction="sum"
        )
        (gradient,) = torch.autograd.grad(loss, x)
        delta = (x.detach() + 8 / 255 * gradient.sign() - clean).clamp(-8 / 255, 8 / 255)
        x = (clean + delta).clamp(0, 1)
        apart = np.abs(got.images - x.numpy().transpose(0, 2, 3, 1)) > 1e-6
        assert apart.mean() < 2e-3  # where the gradient is nothing but rounding
        np.testing.assert_array_equal(got.logits.argmax(1), twin(x).argmax(1).numpy())


@pytest.mark.parametrize("norm", attacks.NORMS)
def test_a_convmixer_against_foolbox(norm):
    images, labels, twin, classifier = torch_pair("gelu")
    theirs = foolbox.PyTorchModel(twin, bounds=(0, 1))
    x, y = torch.tensor(images.transpose(0, 3, 1, 2)), torch.tensor(labels).long()
    fgsm, pgd = {
        "linf": (foolbox.attacks.LinfFastGradientAttack, foolbox.attacks.LinfPGD),
        "l2": (foolbox.attacks.L2FastGradientAttack, foolbox.attacks.L2PGD),
    }[norm]
    epsilon = {"linf": 8 / 255, "l2": 0.5}[norm]

    @jax.jit
    def ours(images):
        arguments = (classifier, images, labels, epsilon)
        return (
            attacks.fgsm(*arguments, norm=norm),
            attacks.pgd2(*arguments, norm=norm),
            attacks.pgd(*arguments, norm=norm, steps=5, step_size=0.4),
        )

    for got, attack in zip(
        ours(images),
        (
            fgsm(random_start=False),
            pgd(rel_stepsize=1.0, steps=2, random_start=False),
            pgd(rel_stepsize=0.4, steps=5, random_start=False),
        ),
        strict=True,
    ):
        _, expected, fooled = attack(theirs, x, y, epsilons=epsilon)
        apart = np.abs(got - expected.numpy().transpose(0, 2, 3, 1)) > 1e-6
        assert apart.mean() < 2e-3  # where the gradient is nothing but rounding
        np.testing.assert_array_equal(classifier(got).argmax(1) != labels, fooled.numpy())
        assert 0 < fooled.numpy().mean() < 1


def torch_pair(activation):
    """Images, labels that the twin mostly predicts, a ConvMixer in PyTorch and its copy in Flax."""
    twin = torch_convmixers.module(activation=activation)
    model, variables = randmix.convmixer_from_torch(twin.state_dict(), activation=activation)
    images = np.random.default_rng(1).random((24, 8, 8, 1), np.float32)
    with torch.no_grad():
        labels = twin(torch.tensor(images.transpose(0, 3, 1, 2))).argmax(1).numpy().astype(np.int32)
    labels[::6] = (labels[::6] + 1) % 10
    return images, labels, twin, jax.jit(partial(model.apply, variables, train=False))
