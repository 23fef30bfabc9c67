"""Hidden Markov chains: forward-backward, scaled or in log space, whole or in blocks."""
