"""The weights `denoise-real` that come with gamax: noise of real cameras (PolyU).

The network of `pretrained_denoise_gaussian.py`, which it starts from, as there are 86 pairs.

Command:  python train.py configs/pretrained_denoise_real.py --data.source POLYU
Result:   gamax/pretrained/denoise-real.md
Time:     about 15 minutes on one core of a CPU
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

experiment = Experiment(
    model=ModelConfig(name="gama_ir_tiny", overrides={"depth": 12, "spatial_conv": "dense"}),
    data=DataConfig(dataset="paired_folder", encoding="raw", patch_size=128),
    optimizer=OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-6, warmup_steps=50, gradient_clip=1.0),
    training=TrainingConfig(
        steps=1_200,
        batch_size=4,
        loss="psnr",
        ema_decay=0.99,
        initial_weights={"all": "denoise-gaussian"},
        checkpoint_every=200,
    ),
    evaluation=EvaluationConfig(protocol="polyu"),
    logging=LoggingConfig(every=100),
)
