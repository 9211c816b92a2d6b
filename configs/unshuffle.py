r"""Pixel un-shuffling (section 4.4): a ConvMixer restores images with permuted pixels.

    for mode in full chans space; do
      python -m randmix.main --config=configs/unshuffle.py --config.mode=$mode \
        --workdir=runs/unshuffle-$mode
    done
    python -m randmix unshuffle \
        --workdirs=runs/unshuffle-full,runs/unshuffle-chans,runs/unshuffle-space

The default uses scikit-learn's 1,797 digits of 8 x 8 pixels. One permutation of the positions,
determined by permutation_seed, applies to every image of every run.

Expected test PSNR with seed 0: full 29.7 dB, chans 26.9 dB, space 27.4 dB, in 30 to 40 seconds each
on two CPU cores with other load. The mean training image scores 11.4 dB. Every pixel is within
reach of its place (docs/unshuffle.md); where fewer than 90 % are, a run warns.

Variants, as in --config=configs/unshuffle.py:mnist, of which only :tiny has been measured;
python -m randmix prepare NAME prepares the data:

    :mnist           ConvMixer-64/8, kernel 7, 28 x 28 pixels, reach 97 %
    :fashion_mnist   the same
    :cifar10         ConvMixer-128/8, kernel 7, 32 x 32 colour pixels, reach 89 %
    :large           the paper's large model, ConvMixer-512/16, kernel 7, on CIFAR-10, reach 100 %
    :laptop          the default, which takes half a minute
    :tiny            ConvMixer-32/2 on the digits, reach 94 %, ten seconds; full 22.6 dB
"""

from randmix.config import default, vary

_PAPER = {"model.depth": 8, "batch_size": 128, "epochs": 25.0}
VARIANTS = {
    "mnist": {**_PAPER, "data.name": "mnist"},
    "fashion_mnist": {**_PAPER, "data.name": "fashion_mnist"},
    "cifar10": {**_PAPER, "data.name": "cifar10", "model.width": 128},
    "large": {**_PAPER, "data.name": "cifar10", "model.width": 512, "model.depth": 16},
    "laptop": {},
    "tiny": {"model.width": 32, "model.depth": 2, "epochs": 10.0},
}


def get_config(variant=""):
    config = default("convmixer")
    config.task = "unshuffling"
    config.data.name = "digits"
    config.model.width = 64
    config.model.depth = 4
    config.model.kernel_size = 7
    config.batch_size = 32
    config.epochs = 40.0
    config.optimizer.learning_rate = 0.05
    config.optimizer.clip_norm = 1.0
    config.log_every = 100
    config.eval_every = 500
    config.checkpoint_every = 500
    return vary(config, variant, VARIANTS)
