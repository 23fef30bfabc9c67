"""Reads a model: which sites there are, and which parameter feeds which argument."""
