"""The PyTorch side of ``time_to_accuracy.py``: trains a ConvMixer or ResNet and tests it, by hand.

    python benchmarks/torch_training.py SETTINGS.json WORKDIR

SETTINGS.json holds the flat keys of a randmix config that ``time_to_accuracy.py`` makes, and
``data``, the folder with the arrays, and ``compile``. The process imports PyTorch and NumPy only.
WORKDIR gets ``weights.pt`` and a ``result.json`` with the entries of randmix's that are compared.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "parity"))

import torch_twins  # the ConvMixer as its authors publish it, and the usual pre-activation ResNet

# name: the model, its layers by randmix's paths, and the keys of the model that it takes
MODELS = {
    "convmixer": (
        torch_twins.conv_mixer,
        lambda module, settings: torch_twins.conv_mixer_places(module, settings["model.depth"]),
        ("width", "depth", "kernel_size", "patch_size", "activation"),
    ),
    "resnet": (
        torch_twins.PreActResNet,
        lambda module, settings: torch_twins.resnet_places(module),
        ("width", "depth", "kernel_size", "multiplier", "between", "stem"),
    ),
}


class Training:
    """A model, its optimizer and its schedule.

    Attributes:
        module: the model, for images [N, C, H, W].
        places: its layers by randmix's paths.
        trained: its trained parameters.
    """

    def __init__(self, settings, *, total_steps):
        make, find_places, keys = MODELS[settings["model.name"]]
        self.module = make(
            channels=len(settings["model.mean"]),
            num_classes=settings["num_classes"],
            **{key: settings[f"model.{key}"] for key in keys},
        ).to(memory_format=torch.channels_last)
        self.places = find_places(self.module, settings)
        kernels, others = [], []
        for path, parameter in torch_twins.tensors(self.places).items():
            if settings["mode"] == "chans" and path.startswith("spatial/"):
                parameter.requires_grad_(False)
            else:
                (kernels if path.endswith("/kernel") else others).append(parameter)
        self.trained = [*kernels, *others]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": kernels, "weight_decay": settings["optimizer.weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            betas=(settings["optimizer.b1"], settings["optimizer.b2"]),
            eps=settings["optimizer.eps"],
            fused=True,  # faster on a CPU, too
        )
        shares, multiples = zip(*settings["schedule.points"], strict=True)
        self._steps = [share * total_steps for share in shares]
        self._rates = [multiple * settings["optimizer.learning_rate"] for multiple in multiples]
        self._mean, self._std = (
            255 * torch.tensor(settings[f"model.{key}"]).reshape(-1, 1, 1)
            for key in ("mean", "std")
        )
        self._clip_norm = settings["optimizer.clip_norm"]
        self._label_smoothing = settings["label_smoothing"]
        self._model = torch.compile(self.module) if settings["compile"] else self.module

    def step(self, step, images, labels):
        """Takes a step after ``step`` ones, on images [N, H, W, C] uint8; returns the loss."""
        for group in self._optimizer.param_groups:
            group["lr"] = float(np.interp(step, self._steps, self._rates))
        self.module.train()
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._model(self._normalized(images))
        loss = functional.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        loss.backward()
        if self._clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, self._clip_norm)
        self._optimizer.step()
        return loss.detach()

    @torch.inference_mode()
    def accuracy(self, images, labels, *, batch_size):
        """The share of images [N, H, W, C] uint8 that the model classifies correctly."""
        self.module.eval()
        batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
        correct = (self.module(self._normalized(x)).argmax(1).eq(y).sum() for x, y in batches)
        return float(sum(correct)) / len(labels)

    def _normalized(self, images):
        # The permuted view has the strides of channels_last, and arithmetic keeps them.
        return images.permute(0, 3, 1, 2).float().sub_(self._mean).div_(self._std)


def flipped(images, generator):
    """Images [N, H, W, C], each mirrored left to right with probability 1/2."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(2), images)


def main(settings_file, workdir):
    settings, workdir = json.loads(Path(settings_file).read_text()), Path(workdir)
    workdir.mkdir(parents=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(settings["seed"])
    generator = torch.Generator().manual_seed(settings["seed"])
    images, labels, test_images, test_labels = (
        torch.from_numpy(np.load(Path(settings["data"]) / f"{split}_{name}.npy"))
        for split in ("train", "test")
        for name in ("image", "label")
    )
    batch_size = settings["batch_size"]
    per_epoch = len(labels) // batch_size
    total_steps = max(1, round(settings["epochs"] * per_epoch))
    training = Training(settings, total_steps=total_steps)
    for step in range(total_steps):
        start = step % per_epoch * batch_size
        if not start:
            order = torch.randperm(len(labels), generator=generator)
        rows = order[start : start + batch_size]
        batch = flipped(images[rows], generator) if settings["data.flip"] else images[rows]
        loss = training.step(step, batch, labels[rows])
        if (step + 1) % settings["log_every"] == 0:
            print(f"step {step + 1}: loss {loss:.4f}", flush=True)
    accuracy = training.accuracy(test_images, test_labels, batch_size=batch_size)
    torch.save(training.module.state_dict(), workdir / "weights.pt")
    trained = sum(parameter.numel() for parameter in training.trained)
    whole = sum(parameter.numel() for parameter in training.module.parameters())
    result = {
        "metrics": {"test_accuracy": accuracy},
        "parameters": {"trainable": trained, "frozen": whole - trained},
        "step": total_steps,
    }
    (workdir / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
