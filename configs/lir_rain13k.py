"""LIR for rain, as its authors train it (arXiv 2402.01368).

The second cosine is cut off at two thirds, as theirs is: the last learning rate is 7.6e-5.

Command:  python train.py configs/lir_rain13k.py --data.source DIR --evaluation.data RAIN100H
Result:   no published number at hand; not reproduced here yet
Time:     the authors took 2 GPUs with 16, 8 and 4 crops each; hours not published
Differs:  every crop is drawn on its own; the authors draw crops of 258 and cut all of a batch at one common place; the
          average of the parameters is taken after the update, theirs before; they call their training set "Rain", and
          that it is Rain13K is an assumption
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

experiment = Experiment(
    model=ModelConfig(name="lir"),
    data=DataConfig(dataset="rain13k", small_images="pad", cut_size=4096, cut_stride=4096, patch_size=128),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        periods=(CosinePeriod(450_000, final_learning_rate=3e-4), CosinePeriod(450_000, final_learning_rate=1e-6)),
        beta1=0.9,
        beta2=0.999,
        weight_decay=1e-4,
        gradient_clip=None,
    ),
    training=TrainingConfig(
        steps=750_000,
        batch_size=32,
        progressive=(
            Stage(250_000, patch_size=160, batch_size=16),
            Stage(500_000, patch_size=256, batch_size=8),
        ),
        loss="l1",
        ema_decay=0.999,
        checkpoint_every=5_000,
    ),
    evaluation=EvaluationConfig(protocol="lir-crop32", every=20_000),
)
