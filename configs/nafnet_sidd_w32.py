"""NAFNet of width 32 for the noise of phone cameras, as its authors train it (arXiv 2204.04676).

Command:  python train.py configs/nafnet_sidd_w32.py --data.source DIR
Result:   published 39.9672 / 0.9599 on the validation blocks of SIDD (unrounded, 3-D SSIM); not reproduced here yet
Time:     the authors took 8 GPUs with 4 crops each; hours not published
Differs:  in nothing known
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="nafnet_sidd_w32"),
    data=DataConfig(dataset="sidd", cut_size=512, cut_stride=384, patch_size=256, augment=False),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=0.0, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=200_000, batch_size=32, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="sidd-srgb", every=20_000),
)
