"""GAMA-IR S for Gaussian noise in colour, sigma 0 to 50 (arXiv 2404.00807).

Command:  python train.py configs/gama_ir_s_gaussian.py --data.source DIR --evaluation.data CBSD68
Result:   no published number at hand; not reproduced here yet
Time:     hours and GPUs not published; 6.4 million crops, a number that is unconfirmed
Differs:  the paper's recipe is not public: this is NAFNet's (arXiv 2204.04676), a reconstruction; so are the
          photographs (DFWB) and sigma, drawn for each crop, as Restormer and LIR have them
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig
from gamax.data.degradations import GaussianNoise

experiment = Experiment(
    model=ModelConfig(name="gama_ir_s"),
    data=DataConfig(
        dataset="dfwb", cut_size=512, cut_stride=416, patch_size=256, degradations=(GaussianNoise(sigma=(0.0, 50.0)),)
    ),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=0.0, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=200_000, batch_size=32, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="gauss-color-25", every=20_000),
)
