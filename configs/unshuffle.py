"""Pixel un-shuffling (the paper's section 4.4): a ConvMixer gives an image back whose pixels have changed places.

One permutation of the positions, decided by permutation_seed, for every image of every run. The default, on
scikit-learn's 1,797 digits of 8 x 8 pixels:

    python -m randmix.main --config=configs/unshuffle.py --config.mode=full --workdir=runs/unshuffle-full
    python -m randmix.main --config=configs/unshuffle.py --config.mode=chans --workdir=runs/unshuffle-chans
    python -m randmix.main --config=configs/unshuffle.py --config.mode=space --workdir=runs/unshuffle-space
    python -m randmix.unshuffle --workdirs=runs/unshuffle-full,runs/unshuffle-chans,runs/unshuffle-space

Expected test PSNR with seed 0: full 29.7 dB, chans 26.9 dB, space 27.4 dB, in 30 to 40 seconds each on two CPU
cores that others used too. The mean training image scores 11.4 dB.

Variants, of which only tiny was measured yet; prepare a data set with python -m randmix.data.prepare NAME:

    --config=configs/unshuffle.py:mnist           ConvMixer-64/8, k 7, 28 x 28 pixels
    --config=configs/unshuffle.py:fashion_mnist   the same
    --config=configs/unshuffle.py:cifar10         ConvMixer-128/8, k 7, 32 x 32 pixels in colour
    --config=configs/unshuffle.py:large           the paper's large model, ConvMixer-512/16, k 7, on CIFAR-10
    --config=configs/unshuffle.py:laptop          the default: it takes half a minute
    --config=configs/unshuffle.py:tiny            ConvMixer-32/2 on the digits, ten seconds; full 22.6 dB
"""

from randmix.config import default
from randmix.errors import check_choice

# Name of the data set, width, depth, kernel size, batch size, epochs.
VARIANTS = {
    "digits": ("digits", 64, 4, 7, 32, 40.0),
    "laptop": ("digits", 64, 4, 7, 32, 40.0),
    "mnist": ("mnist", 64, 8, 7, 128, 10.0),
    "fashion_mnist": ("fashion_mnist", 64, 8, 7, 128, 10.0),
    "cifar10": ("cifar10", 128, 8, 7, 128, 25.0),
    "large": ("cifar10", 512, 16, 7, 128, 25.0),
    "tiny": ("digits", 32, 2, 7, 32, 10.0),
}


def get_config(variant="digits"):
    check_choice("variant", variant, VARIANTS)
    name, width, depth, kernel_size, batch_size, epochs = VARIANTS[variant]
    config = default("convmixer")
    config.task = "unshuffling"
    config.data.name = name
    config.model.width = width
    config.model.depth = depth
    config.model.kernel_size = kernel_size
    config.batch_size = batch_size
    config.epochs = epochs
    config.optimizer.learning_rate = 0.05
    config.optimizer.clip_norm = 1.0
    config.log_every = 100
    config.eval_every = 500
    config.checkpoint_every = 500
    return config
