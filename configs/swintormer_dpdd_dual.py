"""Swintormer for defocus blur in dual-pixel images, with the recipe of its authors (arXiv 2401.05907).

As in their code it takes two views and no prior. With a prior: `--model.name swintormer_dual_pixel_prior --data.prior
FOLDER`, the folder by `gamax data prior`. Its authors score it with `eval.py --sliding-window swintormer`.

Command:  python train.py configs/swintormer_dpdd_dual.py --data.source DIR
Result:   published 27.07 dB on DPDD; not reproduced here yet
Time:     the authors took 1 GPU; hours not published
Differs:  scored are averaged weights on whole images, theirs are not averaged, and in sliding windows; every crop is
          drawn on its own, theirs all at one common place of cuts of 512; all cuts are used, theirs without the 30 %
          least sharp of each image; 852,000 steps, where their schedule ends, not the 5,000,000 of their options
"""

from gamax.config import (
    CosinePeriod,
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)

experiment = Experiment(
    model=ModelConfig(name="swintormer_dual_pixel"),
    data=DataConfig(dataset="dpdd_dual", cut_size=512, cut_stride=204, patch_size=256),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        periods=(CosinePeriod(12_000, final_learning_rate=3e-4), CosinePeriod(840_000, final_learning_rate=1e-5)),
        beta1=0.9,
        beta2=0.99,
        weight_decay=1e-4,
        gradient_clip=0.01,
    ),
    training=TrainingConfig(steps=852_000, batch_size=9, loss="l1", ema_decay=0.999, checkpoint_every=8_000),
    evaluation=EvaluationConfig(protocol="dpdd-dual16", every=20_000),
)
