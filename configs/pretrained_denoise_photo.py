"""The weights `denoise-photo` that come with gamax: noise of any strength, also in photographs stored as JPEG.

The network of `pretrained_denoise_gaussian.py`, which it starts from. Most JPEG files store colour at half the
resolution, which makes the grain of its noise twice as coarse; a network that knows white noise alone leaves that.

Command:  python train.py configs/pretrained_denoise_photo.py --data.source BSDS500 --evaluation.data CBSD68
Result:   gamax/pretrained/denoise-photo.md
Time:     16 minutes on one core of a CPU
"""

from gamax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from gamax.data.degradations import JPEG, GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="gama_ir_tiny", overrides={"depth": 12, "spatial_conv": "dense"}),
    data=DataConfig(
        dataset="bsds500",
        encoding="raw",
        patch_size=96,
        degradations=(GaussianNoise(sigma=(0.0, 50.0)), JPEG(quality=(60, 100), probability=0.75)),
    ),
    optimizer=OptimizerConfig(learning_rate=2e-3, final_learning_rate=1e-6, warmup_steps=50, gradient_clip=1.0),
    training=TrainingConfig(
        steps=2_400,
        batch_size=4,
        loss="psnr",
        ema_decay=0.99,
        initial_weights={"all": "denoise-gaussian"},
        checkpoint_every=200,
    ),
    evaluation=EvaluationConfig(protocol="gauss-color-25"),
    logging=LoggingConfig(every=100),
)
