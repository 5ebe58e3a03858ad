// What runs a graph: ONNX Runtime, or a TensorRT engine.
#pragma once

#include <memory>

#include "run.hpp"

namespace atm {

class Backend {
 public:
  virtual ~Backend() = default;
  // Logits [images, classes] of prepared images. Safe from any thread.
  virtual std::vector<float> run(const void* image, std::size_t images) = 0;
  std::string about;
};

std::unique_ptr<Backend> make_onnx_backend(const Bytes& graph, const Facts& facts,
                                           const Options& options);

// Error ATM_ARGUMENT where this library was built without TensorRT.
std::unique_ptr<Backend> make_tensorrt_backend(const Run& run, const Options& options);

}  // namespace atm
