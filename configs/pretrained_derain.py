"""The weights `derain` that come with gamax: synthetic rain on photographs (Rain800).

The network of `pretrained_denoise_gaussian.py`, but from random parameters: the clean pictures of Rain800's test set
are among those that the denoiser has learned from.

Command:  python train.py configs/pretrained_derain.py --data.source RAIN800
Result:   gamax/pretrained/derain.md
Time:     77 minutes on one core of a CPU
"""

from gamax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TrainingConfig,
)

experiment = Experiment(
    model=ModelConfig(name="gama_ir_tiny", overrides={"depth": 12, "spatial_conv": "dense"}),
    data=DataConfig(dataset="paired_folder", encoding="raw", patch_size=96, small_images="pad"),
    optimizer=OptimizerConfig(learning_rate=5e-3, final_learning_rate=1e-6, warmup_steps=100, gradient_clip=1.0),
    training=TrainingConfig(
        steps=11_000,
        batch_size=4,
        progressive=(Stage(first_step=9_500, patch_size=192, batch_size=2),),
        loss="psnr",
        ema_decay=0.998,
        checkpoint_every=500,
    ),
    evaluation=EvaluationConfig(protocol="rain800-rgb"),
    logging=LoggingConfig(every=100),
)
