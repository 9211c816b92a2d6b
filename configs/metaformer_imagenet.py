r"""PoolFormer-S12, ViT-Tiny/16 or Mixer-S/16 on ImageNet at 224 x 224 pixels.

    pip install -e ".[images]"
    python -m randmix prepare imagenet2012 --manual_dir=DIR
    python -m randmix.main --config=configs/metaformer_imagenet.py --config.mode=chans \
        --workdir=runs/imagenet-poolformer
    python -m randmix.main --config=configs/metaformer_imagenet.py:vit_tiny \
        --config.mode=chans --workdir=runs/imagenet-vit

The sizes are timm's. Any mixer of docs/models.md goes into the stages of PoolFormer, for example
--config.model.mixer=random. The recipe is DeiT's, from which PoolFormer's comes: batch 1024, AdamW
at 0.001 with weight decay 0.05, 300 epochs of which 5 are warm-up, a cosine, RandAugment, mixup,
CutMix, random erasing and label smoothing, here in bfloat16. It lacks their stochastic depth, and
DeiT's repeated augmentation.

No run was measured here on any hardware, so neither accuracy nor time is known. For comparison,
trained in full with those recipes: PoolFormer-S12 77.2 % (arXiv 2111.11418), DeiT-Ti, a ViT-Tiny
with a class token, 72.2 % (arXiv 2012.12877). At S12's size in four stages, identity instead of a
mixer reaches 74.6 % and a frozen random matrix 76.6 % (arXiv 2210.13452, whose blocks have another
activation and head).

Variants; the last two are for other machines and data:

    :vit_tiny    ViT-Tiny/16 with average pooling instead of a class token
    :mixer_s16   MLP-Mixer-S/16
    :laptop      four stages of widths 16 to 128 at 64 x 64, batch 64, 20 epochs, float32
    :tiny        four stages of widths 4 to 32 at 32 x 32, 4 steps: a smoke test

A folder of your own images needs no ImageNet; see configs/convmixer_imagenet.py.
"""

from randmix.config import default, vary

_ISOTROPIC = {
    "model.stages": (1,),
    "model.patch_size": 16,
    "model.norm": "layer",
    "model.layer_scale": 0.0,
}
_LAPTOP = {
    "data.image_size": 64,
    "model.width": 16,
    "batch_size": 64,
    "epochs": 20.0,
    "precision": "float32",
    "eval_every": 2_000,
}
_TINY = {
    "data.image_size": 32,
    "model.width": 4,
    "model.depth": 6,
    "model.head_dim": 4,
    "batch_size": 8,
    "steps": 4,
}
VARIANTS = {
    "vit_tiny": {
        **_ISOTROPIC,
        "model.mixer": "attention",
        "model.width": 192,
        "model.head_dim": 64,
    },
    "mixer_s16": {
        **_ISOTROPIC,
        "model.mixer": "token_mlp",
        "model.width": 512,
        "model.depth": 8,
    },
    "laptop": _LAPTOP,
    "tiny": {**_LAPTOP, **_TINY},
}


def get_config(variant=""):
    config = default("metaformer")
    config.data.name = "imagenet2012"
    config.data.crop_scale = 0.08
    config.data.interpolation = "antialias_random"
    config.data.eval_crop = 0.9
    config.data.flip = True
    config.data.randaugment = "rand-m9-mstd0.5-inc1"
    config.data.mixup = 0.8
    config.data.cutmix = 1.0
    config.data.mix_switch_probability = 0.5
    config.data.random_erasing = 0.25
    config.model.mixer = "pooling"
    config.model.width = 64
    config.model.depth = 12
    config.model.stages = (1, 2, 5, 8)
    config.model.patch_size = 4
    config.model.norm = "group"
    config.model.layer_scale = 1e-5
    config.batch_size = 1024
    config.epochs = 300.0
    config.label_smoothing = 0.1
    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.05
    config.schedule.name = "cosine"
    config.schedule.warmup = 5 / 300
    config.precision = "bfloat16"
    config.log_every = 100
    config.eval_every = 10_000
    config.checkpoint_every = 2_000
    return vary(config, variant, VARIANTS)
