"""NAFNet of width 64 for motion blur, as its authors train it (arXiv 2204.04676).

Command:  python train.py configs/nafnet_gopro_w64.py --data.source DIR
Result:   published 33.7103 / 0.9668 on GoPro (3-D SSIM, local means, 33.08 dB without); not reproduced here yet
Time:     the authors took 8 GPUs with 8 crops each; hours not published
Differs:  in nothing known. As in the authors' options, means are taken over 384 pixels around every pixel; crops of
          256 do not notice, whole images do. `--model.overrides` with nothing behind it and
          `--evaluation.protocol gopro` take them over the whole image
"""

from gamax.config import DataConfig, EvaluationConfig, Experiment, ModelConfig, OptimizerConfig, TrainingConfig

experiment = Experiment(
    model=ModelConfig(name="nafnet_gopro_w64", overrides={"local_window": 384}),
    data=DataConfig(dataset="gopro", cut_size=512, cut_stride=256, patch_size=256),
    optimizer=OptimizerConfig(
        learning_rate=1e-3, final_learning_rate=1e-7, beta1=0.9, beta2=0.9, weight_decay=1e-3, gradient_clip=0.01
    ),
    training=TrainingConfig(steps=400_000, batch_size=64, loss="psnr", checkpoint_every=5_000),
    evaluation=EvaluationConfig(protocol="gopro-tlc", every=20_000),
)
