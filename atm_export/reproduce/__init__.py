"""The paper's tables and figures, measured again on the weights and images that one has."""
