"""The weights `denoise-gaussian` that come with gamax: Gaussian noise in colour, sigma 0 to 50, blind.

GAMA-IR (arXiv 2404.00807) of a size for CPUs, with dense 3x3 convolutions: on a CPU a step takes 12 % longer with them
than with depth-wise ones, for 2.6 times the multiply-adds.

Command:  python train.py configs/pretrained_denoise_gaussian.py --data.source BSDS500 --evaluation.data CBSD68
Result:   gamax/pretrained/denoise-gaussian.md
Time:     98 minutes on one core of a CPU
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
from gamax.data.degradations import GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="gama_ir_tiny", overrides={"depth": 12, "spatial_conv": "dense"}),
    data=DataConfig(dataset="bsds500", encoding="raw", patch_size=64, degradations=(GaussianNoise(sigma=(0.0, 50.0)),)),
    optimizer=OptimizerConfig(learning_rate=5e-3, final_learning_rate=1e-6, warmup_steps=100, gradient_clip=1.0),
    training=TrainingConfig(
        steps=12_000,
        batch_size=8,
        # Means over larger crops at the end, as the network will see them over whole images.
        progressive=(Stage(first_step=10_500, patch_size=128, batch_size=4),),
        loss="psnr",
        ema_decay=0.998,
        checkpoint_every=500,
    ),
    evaluation=EvaluationConfig(protocol="gauss-color-25"),
    logging=LoggingConfig(every=100),
)
