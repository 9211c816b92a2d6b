r"""A MetaFormer of width 128, depth 6 and patch 4 on CIFAR-10, with any of seven mixers.

    python -m randmix prepare cifar10
    python -m randmix.main --config=configs/metaformer_cifar.py --config.model.mixer=attention \
        --config.mode=full
    python -m randmix.main --config=configs/metaformer_cifar.py --config.model.mixer=attention \
        --config.mode=chans

The mixers are depthwise (filters of 3 x 3), attention, token_mlp, random, pooling, shift and
identity; see docs/models.md. All have one recipe, so that they can be compared: AdamW at 0.001 with
weight decay 0.05, 5 % warm-up and a cosine, 100 epochs of batches of 512, label smoothing 0.1,
flips, padded crops and RandAugment. That is the usual recipe for small ViTs; neither its accuracy
nor its time was measured here. At width 64, two epochs of batches of 128 went best at 0.01 with
depthwise filters and at 0.003 with attention (docs/measurements.md).

Variants, which combine, as in --config=configs/metaformer_cifar.py:cifar100-laptop:

    :cifar100   CIFAR-100
    :stages     four stages of widths 32 to 256, patch 2, GroupNorm: a small PoolFormer-S12
    :laptop     width 64 and depth 4 on a fifth of the images, 10 epochs, a few minutes
    :tiny       the same code at the smallest size, for tests
"""

from randmix.config import default, vary

VARIANTS = {
    "cifar100": {"data.name": "cifar100"},
    "stages": {
        "model.width": 32,
        "model.depth": 12,
        "model.stages": (1, 2, 5, 8),
        "model.patch_size": 2,
        "model.norm": "group",
    },
    "laptop": {
        "model.width": 64,
        "model.depth": 4,
        "batch_size": 128,
        "data.subset": 0.2,
        "epochs": 10.0,
        "eval_every": 156,
    },
    "tiny": {
        "model.width": 8,
        "model.depth": 1,
        "model.head_dim": 4,
        "batch_size": 8,
        "steps": 2,
    },
}


def get_config(variant=""):
    config = default("metaformer")
    config.data.name = "cifar10"
    config.data.crop_padding = 4
    config.data.flip = True
    config.data.randaugment = "torchvision-n2-m12"
    config.model.width = 128
    config.model.depth = 6
    config.model.patch_size = 4
    config.batch_size = 512
    config.epochs = 100.0
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup = 0.05
    config.log_every = 97
    config.eval_every = 970
    config.checkpoint_every = 970
    return vary(config, variant, VARIANTS)
