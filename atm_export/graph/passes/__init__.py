"""Graph passes: one file each, (model) -> PassResult(model, modified), in a list that one can read."""
