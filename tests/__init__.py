"""A package of its own: what is installed beside us may bring one of the same name."""
