// What runs a graph: ONNX Runtime, or a TensorRT engine.
#pragma once

#include <memory>

#include "graph.hpp"

namespace atm {

using Answers = std::vector<std::vector<float>>;

class Backend {
 public:
  virtual ~Backend() = default;
  // The task's outputs [images, ...] of prepared images, in its order. Safe from any thread.
  virtual Answers run(const void* image, std::size_t images) = 0;
  std::string about;
};

// What the options name: a TensorRT engine, a graph in low precision, or model.onnx.
std::unique_ptr<Backend> backend_of(const Run& run, const Options& options);

std::unique_ptr<Backend> make_onnx_backend(const SavedGraph& graph, const Facts& facts,
                                           const Options& options);

// Error ATM_ARGUMENT where this library was built without TensorRT.
std::unique_ptr<Backend> make_tensorrt_backend(const Run& run, const Options& options);

}  // namespace atm
