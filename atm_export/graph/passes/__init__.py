"""Graph passes, one file each: (model) -> PassResult(model, modified)."""
