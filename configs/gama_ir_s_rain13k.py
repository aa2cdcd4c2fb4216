"""GAMA-IR S for rain (arXiv 2404.00807).

Command:  python train.py configs/gama_ir_s_rain13k.py --data.source DIR --evaluation.data RAIN100H
Result:   no published number at hand; not reproduced here yet
Time:     hours and GPUs not published; 6.4 million crops, a number that is unconfirmed
Differs:  the paper's recipe is not public: this is NAFNet's (arXiv 2204.04676), a reconstruction, with its weight decay
          and augmentation for deblurring; that the training set is Rain13K is an assumption too
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="gama_ir_s"),
    data=DataConfig(dataset="rain13k", small_images="pad", cut_size=4096, cut_stride=4096, patch_size=256),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=1e-3, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=200_000, batch_size=32, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="rain-y-matlab", every=20_000),
)
