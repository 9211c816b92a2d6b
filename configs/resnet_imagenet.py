r"""Separable pre-activation ResNet, 8 n + 2 layers, on ImageNet at 224 x 224 pixels (section 4.1).

    pip install -e ".[images]"
    python -m randmix prepare imagenet2012 --manual_dir=DIR
    python -m randmix.main --config=configs/resnet_imagenet.py --config.mode=chans \
        --workdir=runs/imagenet-resnet

n is --config.model.depth, here 2: 18 layers of widths 64 to 512, multiplier 9. The paper states no
recipe for ImageNet; this is that of fb.resnet.torch, which the authors of the pre-activation ResNet
used, and of torchvision: SGD with momentum, batch 256, learning rate 0.1 divided by 10 after 30 and
60 of 90 epochs, random crops and flips, float32, no label smoothing, and evaluation on the central
224 of 256 pixels. Crops are resized as by torchvision, bilinearly with antialiasing. The former
also jitters colours, which torchvision doesn't.

The paper plots accuracy against n without stating a number, and no run was measured here on any
hardware, so neither accuracy nor time is known. For comparison: ResNet-18d with learned 1 x 1
combinations and frozen or learned spatial filters reaches 71.30 and 71.88 % with 8 filters, 72.46
and 71.94 % with 64 (Gavrikov & Keuper, arXiv 2301.11360).

Variants, for other machines and data; neither was measured:

    :laptop   n 1, width 16, at 64 x 64, batch 64, 20 epochs
    :tiny     n 1, width 4, at 32 x 32, 4 steps: a smoke test

A folder of your own images needs no ImageNet; see configs/convmixer_imagenet.py.
"""

from randmix.config import default, vary

_TINY = {"data.image_size": 32, "model.width": 4, "model.depth": 1, "batch_size": 8, "steps": 4}
VARIANTS = {
    "laptop": {
        "data.image_size": 64,
        "model.width": 16,
        "model.depth": 1,
        "batch_size": 64,
        "epochs": 20.0,
    },
    "tiny": _TINY,
}


def get_config(variant=""):
    config = default("resnet")
    config.data.name = "imagenet2012"
    config.data.crop_scale = 0.08
    config.data.interpolation = "antialias"
    config.data.eval_crop = 0.875
    config.data.flip = True
    config.model.stem = "imagenet"
    config.model.width = 64
    config.model.depth = 2
    config.batch_size = 256
    config.epochs = 90.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.schedule.boundaries = (1 / 3, 2 / 3)
    config.log_every = 100
    config.eval_every = 10_000
    config.checkpoint_every = 2_000
    return vary(config, variant, VARIANTS)
