"""Restormer for Gaussian noise in colour of sigma 25, as its authors train it (arXiv 2111.09881).

For other levels they train other networks: `--data.degradations.0.sigma 15 15`, `50 50`, or `0 50` for a blind one.

Command:  python train.py configs/restormer_gaussian_color.py --data.source DIR --evaluation.data CBSD68
Result:   published 31.79 dB on CBSD68 (unconfirmed; others measured 31.75); not reproduced here yet
Time:     the authors took 8 GPUs with 8, 5, 4, 2, 1 and 1 crops each; hours not published
Differs:  every crop is drawn on its own; the authors draw crops of 384 and cut all of a batch at one common place;
          mixup draws one weight a pair, theirs one a batch; all photographs are cut, theirs only if both sides exceed
          800 pixels
"""

from gamax.config import (
    CosinePeriod,
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    Stage,
    TrainingConfig,
)
from gamax.data.degradations import GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="restormer_denoising"),
    data=DataConfig(
        dataset="dfwb",
        cut_size=512,
        cut_stride=416,
        patch_size=128,
        small_images="pad",
        mixup=0.5,
        degradations=(GaussianNoise(sigma=(25.0, 25.0)),),
    ),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        periods=(CosinePeriod(92_000, final_learning_rate=3e-4), CosinePeriod(208_000, final_learning_rate=1e-6)),
        beta1=0.9,
        beta2=0.999,
        weight_decay=1e-4,
        gradient_clip=0.01,
    ),
    training=TrainingConfig(
        steps=300_000,
        batch_size=64,
        progressive=(
            Stage(92_000, patch_size=160, batch_size=40),
            Stage(156_000, patch_size=192, batch_size=32),
            Stage(204_000, patch_size=256, batch_size=16),
            Stage(240_000, patch_size=320, batch_size=8),
            Stage(276_000, patch_size=384, batch_size=8),
        ),
        loss="l1",
        checkpoint_every=4_000,
    ),
    evaluation=EvaluationConfig(protocol="gauss-color-25", every=20_000),
)
