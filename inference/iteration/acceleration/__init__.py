"""Schemes that take longer steps than EM's own; each wraps the EM map and keeps its own state."""
