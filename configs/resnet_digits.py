"""The separable pre-activation ResNet, 8 layers of width 16 and multiplier 9, on scikit-learn's handwritten digits.

    python -m randmix.main --config=configs/resnet_digits.py --config.mode=chans

Expected with seed 0: full 0.9944, chans 0.9917, space 0.9861 on the 360 test images, in about a minute on two CPU
cores that other work shares.
"""

from randmix.config import default


def get_config():
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
    return config
