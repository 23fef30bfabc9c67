"""Schemes that take longer steps than EM's own, each a wrapper around the EM map."""
