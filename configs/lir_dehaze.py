"""LIR for haze outdoors, as its authors train it (arXiv 2402.01368).

Command:  python train.py configs/lir_dehaze.py --data.source DIR
Result:   no published number at hand; not reproduced here yet
Time:     the authors took 1 GPU with 16, 8 and 4 crops; hours not published
Differs:  every crop is drawn on its own; the authors draw crops of 258 and cut all of a batch at one common place; the
          average of the parameters is taken after the update, theirs before
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
    data=DataConfig(dataset="reside_outdoor", cut_size=4096, cut_stride=4096, patch_size=128),
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
        batch_size=16,
        progressive=(
            Stage(250_000, patch_size=160, batch_size=8),
            Stage(500_000, patch_size=256, batch_size=4),
        ),
        loss="l1",
        ema_decay=0.999,
        checkpoint_every=5_000,
    ),
    evaluation=EvaluationConfig(protocol="lir-crop32", every=20_000),
)
