"""Where EM starts, and how it makes the end depend less on that."""
