"""Several starts: a short run of all of them, together where that can be, the best carried on."""
