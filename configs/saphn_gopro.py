"""SAPHN with adaptive sampling for motion blur (arXiv 2402.06117), as reconstructed here.

Command:  python train.py configs/saphn_gopro.py --data.source DIR
Result:   published 31.85 / 0.948 on GoPro for the network of 2020 (arXiv 2004.05343); not reproduced here yet
Time:     not published; 150 G multiply-adds for each crop forwards
Differs:  the network, its policy and their losses are reconstructions. Adam at 1e-4, halved every 200,000 of a million
          steps, batches of 6 and crops of 256 are unconfirmed. Gamax's own: L1, a clip of 0.5, the betas (0.999 would
          make the first steps of the policy too large), and that sampling begins after 60 % of the steps, when the
          learning rate is an eighth of the first
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

_RATES = [1e-4 / 2**period for period in range(5)]

experiment = Experiment(
    model=ModelConfig(name="saphn_sampling"),
    data=DataConfig(dataset="gopro", cut_size=512, cut_stride=256, patch_size=256),
    optimizer=OptimizerConfig(
        learning_rate=1e-4,
        # Each ends with the rate that it begins with.
        periods=tuple(CosinePeriod(200_000, final_learning_rate=rate, restart=0.0) for rate in _RATES),
        beta1=0.9,
        beta2=0.99,
        gradient_clip=0.5,
    ),
    training=TrainingConfig(steps=1_000_000, batch_size=6, loss="l1", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="gopro", every=20_000),
)
