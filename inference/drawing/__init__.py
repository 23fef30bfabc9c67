"""Pictures of a fit: the data with what was fitted to them."""
