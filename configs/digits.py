"""ConvMixer-64/4 on scikit-learn's 1,797 handwritten digits: the embedded default.

    python -m randmix.main --config=configs/digits.py

Expected accuracy on the 360 test images: chans 0.996 ± 0.002, full 0.996 ± 0.003, space 0.995 ±
0.002 (five seeds; an image is worth 0.003, and a seed may differ by one between machines), in 10 to
55 seconds on two CPU cores, depending on their other load.

Variants, as in --config=configs/digits.py:tiny:

    :laptop   the default, which is fast enough
    :tiny     the same code at the smallest size, for tests
"""

from randmix.config import default, vary

VARIANTS = {
    "laptop": {},
    "tiny": {"model.width": 8, "model.depth": 1, "batch_size": 8, "steps": 2},
}


def get_config(variant=""):
    config = default("convmixer")
    config.data.name = "digits"
    config.model.width = 64
    config.model.depth = 4
    config.model.kernel_size = 5
    config.model.patch_size = 1
    config.batch_size = 64
    config.epochs = 20.0
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 0.005
    config.optimizer.clip_norm = 1.0
    config.log_every = 22
    config.eval_every = 110
    config.checkpoint_every = 110
    return vary(config, variant, VARIANTS)
