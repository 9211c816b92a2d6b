"""ConvMixer-64/4 on MNIST or Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28.

    python -m randmix prepare fashion_mnist
    python -m randmix.main --config=configs/convmixer_mnist.py:fashion_mnist
    python -m randmix prepare mnist
    python -m randmix.main --config=configs/convmixer_mnist.py

Expected accuracy on Fashion-MNIST's test set with seed 0 after 5 epochs: full 0.912, chans 0.899,
space 0.882, in 3 to 14 minutes on two CPU cores, depending on their other load. Not yet measured on
MNIST, which the paper uses only for un-shuffling.

Variants, which combine, as in --config=configs/convmixer_mnist.py:fashion_mnist-laptop:

    :fashion_mnist   Fashion-MNIST, with its own mean and deviation, and with flips, which would
                     turn MNIST's digits into others
    :laptop          a tenth of the images, 3 epochs, at most a minute
    :tiny            the same code at the smallest size, for tests
"""

from randmix.config import default, vary

VARIANTS = {
    "fashion_mnist": {"data.name": "fashion_mnist", "data.flip": True},
    "laptop": {"data.subset": 0.1, "epochs": 3.0, "log_every": 23, "eval_every": 46},
    "tiny": {"model.width": 8, "model.depth": 1, "batch_size": 8, "steps": 2},
}


def get_config(variant=""):
    config = default("convmixer")
    config.data.name = "mnist"
    config.model.width = 64
    config.model.depth = 4
    config.model.kernel_size = 5
    config.model.patch_size = 2
    config.batch_size = 128
    config.epochs = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.005
    config.optimizer.clip_norm = 1.0
    config.log_every = 100
    config.eval_every = 468
    config.checkpoint_every = 468
    return vary(config, variant, VARIANTS)
