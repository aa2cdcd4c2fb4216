"""A small latent diffusion model that draws clean latents for blurred and noisy photographs: the prior of Swintormer.

It needs an autoencoder, such as that of `vq_small.py`. For your own photographs add `--data.dataset clean_folder
--data.source DIR`. The authors of the published model reduce clean images by BSRGAN; here photographs are blurred and
get noise before they are reduced.

Command:  python train.py configs/ldm_small.py --training.initial-weights autoencoder=runs/vq_small
Result:   runs/ldm_small/; on 200 photographs of BSDS500 its samples are nearer to the truth than noise, and no better
          than the enlarged condition (docs/results/diffusion.md)
Time:     6 minutes on 2 CPU cores
"""

from gamax.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    ModelConfig,
    OptimizerConfig,
    TrainingConfig,
)
from gamax.data.degradations import DefocusBlur, GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="ldm_small"),
    data=DataConfig(
        dataset="sample_photographs",
        encoding="raw",
        patch_size=64,
        degradations=(DefocusBlur(radius=(0.0, 8.0)), GaussianNoise(sigma=(0.0, 25.0))),
    ),
    optimizer=OptimizerConfig(learning_rate=5e-4, final_learning_rate=1e-5, beta2=0.99, gradient_clip=1.0),
    training=TrainingConfig(steps=1500, batch_size=16, loss="mse", ema_decay=0.995, checkpoint_every=500),
    evaluation=EvaluationConfig(protocol="gauss-color-15"),
)
