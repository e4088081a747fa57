"""Inference: the local ELBO, training, forecasting. Knows the protocols only."""
