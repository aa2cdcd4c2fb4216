"""The latent-diffusion prior: autoencoder, denoiser, sampler. Imports nothing of its own."""
