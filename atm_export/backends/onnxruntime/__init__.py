"""ONNX Runtime: the backend on which every export is proven."""
