"""Bipartite soft matching (arXiv 2210.09461), which ToMe and ATM share."""
