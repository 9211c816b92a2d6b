"""ConvMixer-64/4 on Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28 pixels.

    python -m randmix.data.prepare fashion_mnist
    python -m randmix.main --config=configs/convmixer_fashion_mnist.py

Expected test accuracy with seed 0 after 5 epochs: full 0.912, chans 0.899, space 0.882, in 3 to
14 minutes on two CPU cores, depending on their other load.

Variants:

    --config=configs/convmixer_fashion_mnist.py:laptop   a tenth of the images, 3 epochs, at most a
                                                         minute
    --config=configs/convmixer_fashion_mnist.py:tiny     the same code at the smallest size, for
                                                         tests
"""

from randmix.config import default, vary
from randmix.data import catalog

VARIANTS = {
    "default": {},
    "laptop": {
        "data.subset": 0.1,
        "epochs": 3.0,
        "log_every": 23,
        "eval_every": 46,
        "checkpoint_every": 46,
    },
    "tiny": {"model.width": 8, "model.depth": 1, "batch_size": 8, "steps": 2},
}


def get_config(variant="default"):
    config = default("convmixer")
    config.data.name = "fashion_mnist"
    config.data.flip = True
    config.model.width = 64
    config.model.depth = 4
    config.model.kernel_size = 5
    config.model.patch_size = 2
    config.model.mean, config.model.std = catalog.channel_statistics("fashion_mnist")
    config.batch_size = 128
    config.epochs = 5.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.005
    config.optimizer.clip_norm = 1.0
    config.log_every = 100
    config.eval_every = 468
    config.checkpoint_every = 468
    return vary(config, variant, VARIANTS)
