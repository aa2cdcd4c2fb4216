"""GAMA-IR L for the noise of phone cameras (arXiv 2404.00807).

Command:  python train.py configs/gama_ir_l_sidd.py --data.source DIR
Result:   published 40.41 dB (consistent with the abstract) on SIDD; not reproduced here yet
Time:     hours and GPUs not published; 25.6 million crops, a number that is unconfirmed
Differs:  the paper's recipe is not public: this is NAFNet's (arXiv 2204.04676), a reconstruction
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="gama_ir_l"),
    data=DataConfig(dataset="sidd", cut_size=512, cut_stride=384, patch_size=256, augment=False),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=0.0, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=400_000, batch_size=64, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="sidd-srgb", every=20_000),
)
