"""Quick start: Gaussian colour denoising (sigma 25) on photographs that ship inside scikit-image, no download.

Command:  python train.py configs/quickstart.py
Result:   runs/quickstart/, 30.9 dB on the held-out photographs (20.2 dB noisy)
Time:     2 to 3 minutes on 2 CPU cores
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
from gamax.data.degradations import GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="gama_ir_tiny"),
    data=DataConfig(
        dataset="sample_photographs",
        encoding="raw",
        patch_size=64,
        degradations=(GaussianNoise(sigma=(25.0, 25.0)),),
    ),
    optimizer=OptimizerConfig(learning_rate=5e-3, final_learning_rate=1e-5, gradient_clip=1.0),
    training=TrainingConfig(steps=900, batch_size=8, loss="psnr", ema_decay=0.98, checkpoint_every=100),
    evaluation=EvaluationConfig(protocol="gauss-color-25"),
    logging=LoggingConfig(every=20),
)
