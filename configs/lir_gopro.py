"""LIR for motion blur, as its authors train it (arXiv 2402.01368).

Command:  python train.py configs/lir_gopro.py --data.source DIR
Result:   no published number at hand; not reproduced here yet
Time:     the authors took 4 GPUs with 16, 8 and 4 crops each; hours not published
Differs:  every crop is drawn on its own; the authors draw crops of 258 and cut all of a batch at one common place; the
          average of the parameters is taken after the update, theirs before; how they cut GoPro is not public
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
    data=DataConfig(dataset="gopro", cut_size=512, cut_stride=256, patch_size=128),
    optimizer=OptimizerConfig(
        learning_rate=3e-4,
        periods=(CosinePeriod(400_000, final_learning_rate=3e-4), CosinePeriod(350_000, final_learning_rate=1e-6)),
        beta1=0.9,
        beta2=0.999,
        weight_decay=1e-4,
        gradient_clip=None,
    ),
    training=TrainingConfig(
        steps=750_000,
        batch_size=64,
        progressive=(
            Stage(250_000, patch_size=160, batch_size=32),
            Stage(500_000, patch_size=256, batch_size=16),
        ),
        loss="l1",
        ema_decay=0.999,
        checkpoint_every=5_000,
    ),
    evaluation=EvaluationConfig(protocol="lir-crop32", every=20_000),
)
