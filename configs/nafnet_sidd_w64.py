"""NAFNet of width 64 for the noise of phone cameras, as its authors train it (arXiv 2204.04676).

Command:  python train.py configs/nafnet_sidd_w64.py --data.source DIR
Result:   published 40.3045 / 0.9614 on the validation blocks of SIDD (unrounded, 3-D SSIM); not reproduced here yet
Time:     the authors took 8 GPUs with 8 crops each; hours not published
Differs:  in nothing known
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="nafnet_sidd_w64"),
    data=DataConfig(dataset="sidd", cut_size=512, cut_stride=384, patch_size=256, augment=False),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=0.0, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=400_000, batch_size=64, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="sidd-srgb", every=20_000),
)
