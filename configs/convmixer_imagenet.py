r"""ConvMixer-512, kernel 8, patch 7, on ImageNet at 224 x 224 pixels (the paper's section 4.2).

    pip install -e ".[images]"
    python -m randmix prepare imagenet2012 --manual_dir=DIR
    python -m randmix.main --config=configs/convmixer_imagenet.py --config.mode=chans \
        --workdir=runs/imagenet-chans

The recipe is that of the ConvMixer repository: global batch 640, AdamW at 0.01, 150 epochs,
RandAugment, mixup, CutMix and random erasing, bfloat16. Crops are resized bilinearly or bicubically
at random, with antialiasing, the default of timm's training script. The paper plots accuracy
against depth (--config.model.depth) without stating a number, and no run was measured here on any
hardware, so neither accuracy nor time is known. For comparison: the published accuracy of
ConvMixer-1536/20, trained in full with this recipe, is 81.4 % (arXiv 2201.09792, table 1), with the
evaluation of --config.data.eval_crop=0.96. The number of devices must divide the batch size, 640:
1, 2, 4, 5, 8, 10, 16, 20, 32 and so on.

Variants, for other machines and data; neither was measured:

    :laptop   ConvMixer-128/4, patch 4, at 64 x 64, batch 64, 20 epochs, float32
    :tiny     ConvMixer-16/1, patch 4, at 16 x 16, 4 steps: a smoke test

A folder of your own images needs no ImageNet:

    python -m randmix prepare imagefolder --source=DIR --name=pets
    python -m randmix.main --config=configs/convmixer_imagenet.py:laptop \
        --config.data.name=imagefolder/pets
"""

from randmix.config import default, vary

_LAPTOP = {
    "data.image_size": 64,
    "model.width": 128,
    "model.depth": 4,
    "model.kernel_size": 5,
    "model.patch_size": 4,
    "batch_size": 64,
    "epochs": 20.0,
    "precision": "float32",
    "eval_every": 2_000,
}
_TINY = {"data.image_size": 16, "model.width": 16, "model.depth": 1, "batch_size": 8, "steps": 4}
VARIANTS = {"laptop": _LAPTOP, "tiny": {**_LAPTOP, **_TINY}}


def get_config(variant=""):
    config = default("convmixer")
    config.data.name = "imagenet2012"
    config.data.crop_scale = 0.08
    config.data.interpolation = "antialias_random"
    config.data.flip = True
    config.data.randaugment = "rand-m9-mstd0.5-inc1"
    config.data.mixup = 0.5
    config.data.cutmix = 0.5
    config.data.mix_switch_probability = 0.5
    config.data.random_erasing = 0.25
    config.model.width = 512
    config.model.depth = 16
    config.model.kernel_size = 8
    config.model.patch_size = 7
    config.batch_size = 640
    config.epochs = 150.0
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.01
    config.optimizer.eps = 1e-3
    config.optimizer.weight_decay = 2e-5
    config.optimizer.clip_norm = 1.0
    config.precision = "bfloat16"
    config.log_every = 100
    config.eval_every = 10_000
    config.checkpoint_every = 2_000
    return vary(config, variant, VARIANTS)
