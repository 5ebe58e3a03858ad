"""TensorRT engines: enterprise TensorRT (10.x, 11.x) and TensorRT-RTX behind one seam (`api`)."""
