"""The plain UNet that transformers are compared with, for the noise of phone cameras (arXiv 2106.03106).

Command:  python train.py configs/unet_sidd.py --data.source DIR
Result:   no published number; not reproduced here yet
Time:     not published
Differs:  the recipe is that of NAFNet of width 32 (arXiv 2204.04676), a reconstruction to compare networks by
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="unet"),
    data=DataConfig(dataset="sidd", cut_size=512, cut_stride=384, patch_size=256, augment=False),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=0.0, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=200_000, batch_size=32, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="sidd-srgb", every=20_000),
)
