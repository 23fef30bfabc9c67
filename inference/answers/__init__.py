"""What follows from a fit: latents, draws, forecasts, missing entries, labels."""
