"""Separable pre-activation ResNet, 20 layers, width 16, multiplier 9, on CIFAR-100 (section 4.1).

    python -m randmix.data.prepare cifar100
    python -m randmix.main --config=configs/resnet_cifar100.py --config.mode=full
    python -m randmix.main --config=configs/resnet_cifar100.py --config.mode=chans

model.depth is the paper's n, the number of blocks per stage: 6 n + 2 layers. The recipe is the
usual one for pre-activation ResNets: SGD with Nesterov momentum, 200 epochs, the learning rate
divided by 10 at 1/2 and 3/4 of them, crops of images padded by 4 pixels, flips. The paper states
neither accuracy nor learning rate. Accuracy and time were not measured here yet.

Variants:

    --config=configs/resnet_cifar100.py:laptop   8 layers on a fifth of the images, 10 epochs, a few
                                                 minutes
    --config=configs/resnet_cifar100.py:tiny     the same code at the smallest size, for tests
"""

from randmix.config import default, vary
from randmix.data import catalog

VARIANTS = {
    "default": {},
    "laptop": {
        "model.depth": 1,
        "data.subset": 0.2,
        "epochs": 10.0,
        "log_every": 39,
        "eval_every": 156,
        "checkpoint_every": 156,
    },
    "tiny": {
        "model.width": 2,
        "model.depth": 1,
        "model.multiplier": 2,
        "batch_size": 8,
        "steps": 2,
    },
}


def get_config(variant="default"):
    config = default("resnet")
    config.data.name = "cifar100"
    config.data.crop_padding = 4
    config.data.flip = True
    config.model.width = 16
    config.model.depth = 3
    config.model.mean, config.model.std = catalog.channel_statistics("cifar100")
    config.batch_size = 128
    config.epochs = 200.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.log_every = 100
    config.eval_every = 3900
    config.checkpoint_every = 3900
    return vary(config, variant, VARIANTS)
