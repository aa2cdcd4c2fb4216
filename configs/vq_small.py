"""A small VQ autoencoder, the first stage of latent diffusion, on photographs that ship inside scikit-image.

For your own photographs add `--data.dataset clean_folder --data.source DIR`. Its authors train with a perceptual and an
adversarial loss besides.

Command:  python train.py configs/vq_small.py
Result:   runs/vq_small/; on 200 photographs of BSDS500 it keeps structure and light, and hardly any colour yet: 19.8 dB
          on eight of Kodak24 (docs/results/diffusion.md); ten times the steps are a better start
Time:     8 minutes on 2 CPU cores
"""

from gamax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from gamax.data.degradations import GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="vq_small"),
    # The network reconstructs the target and never sees the input, which has no noise.
    data=DataConfig(
        dataset="sample_photographs", encoding="raw", patch_size=64, degradations=(GaussianNoise(sigma=(0.0, 0.0)),)
    ),
    optimizer=OptimizerConfig(learning_rate=1e-3, final_learning_rate=1e-5, beta2=0.99, gradient_clip=1.0),
    training=TrainingConfig(steps=1100, batch_size=8, loss="psnr", ema_decay=0.99, checkpoint_every=250),
    evaluation=EvaluationConfig(protocol="reconstruction"),
)
