"""Several starts: a short run of all of them, one batch where that can be, the best carried on."""
