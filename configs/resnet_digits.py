"""Separable pre-activation ResNet, 8 layers, width 16, multiplier 9, on scikit-learn's digits.

    python -m randmix.main --config=configs/resnet_digits.py --config.mode=chans

Expected accuracy on the 360 test images with seed 0: full 0.9944, chans 0.9917, space 0.9861, in
about a minute on two CPU cores with other load.

Variants:

    --config=configs/resnet_digits.py:laptop   the default, which is fast enough
    --config=configs/resnet_digits.py:tiny     the same code at the smallest size, for tests
"""

from randmix.config import default, vary

VARIANTS = {
    "default": {},
    "laptop": {},
    "tiny": {"model.width": 2, "model.multiplier": 2, "batch_size": 8, "steps": 2},
}


def get_config(variant="default"):
    config = default("resnet")
    config.data.name = "digits"
    config.model.width = 16
    config.model.depth = 1
    config.batch_size = 64
    config.epochs = 20.0
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.1
    config.optimizer.weight_decay = 1e-4
    config.schedule.name = "step"
    config.log_every = 44
    config.eval_every = 110
    config.checkpoint_every = 110
    return vary(config, variant, VARIANTS)
