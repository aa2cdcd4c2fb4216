"""Swintormer for defocus blur in single images, with the recipe of its authors (arXiv 2401.05907).

Their code trains the dual-pixel network alone (`swintormer_dpdd_dual.py`): this one has a view less, everything else is
equal. With a prior: `--model.name swintormer_prior --data.prior FOLDER`, the folder by `gamax data prior`.

Command:  python train.py configs/swintormer_dpdd.py --data.source DIR
Result:   published 27.07 dB on DPDD for the dual-pixel network, none for this one; not reproduced here yet
Time:     the authors took 1 GPU; hours not published
Differs:  one view; every crop is drawn on its own, theirs all at one common place of cuts of 512; all cuts are used,
          theirs without the 30 % least sharp of each image; 852,000 steps, where their schedule ends, not the 5,000,000
          of their options
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
    model=ModelConfig(name="swintormer"),
    data=DataConfig(dataset="dpdd", cut_size=512, cut_stride=204, patch_size=256),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        periods=(CosinePeriod(12_000, final_learning_rate=3e-4), CosinePeriod(840_000, final_learning_rate=1e-5)),
        beta1=0.9,
        beta2=0.99,
        weight_decay=1e-4,
        gradient_clip=0.01,
    ),
    training=TrainingConfig(steps=852_000, batch_size=9, loss="l1", ema_decay=0.999, checkpoint_every=8_000),
    evaluation=EvaluationConfig(protocol="dpdd-single8", every=20_000),
)
