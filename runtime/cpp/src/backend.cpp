#include "backend.hpp"

namespace atm {
namespace {

const std::string kOnnxRuntimes = ".onnxruntime.onnx";  // how names of its own graphs end

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// A graph in low precision, which is made for CPUs and proven there alone.
std::unique_ptr<Backend> low_precision_of(const Run& run, const Options& options) {
  const std::string& name = options.engine;
  const auto found = run.facts().low_precision.find(name);
  if (found == run.facts().low_precision.end()) {
    throw Error(ATM_ARGUMENT, run.folder() + " has no graph '" + name +
                                  "'; export it with --backend onnxruntime --precision int8");
  }
  if (!found->second.fits_source) {
    throw Error(ATM_ENGINE_MISMATCH, name + " was made of another model.onnx; export it again");
  }
  if (options.cuda) throw Error(ATM_ARGUMENT, name + " is made for CPUs; open it without CUDA");
  auto made = make_onnx_backend(read_graph(run, name), run.facts(), options);
  made->about += ", " + name;
  return made;
}

}  // namespace

std::unique_ptr<Backend> backend_of(const Run& run, const Options& options) {
  const std::string& name = options.engine;
  if (name.empty()) return make_onnx_backend(read_graph(run, "model.onnx"), run.facts(), options);
  const bool low = run.facts().low_precision.count(name) != 0 || ends_with(name, kOnnxRuntimes);
  return low ? low_precision_of(run, options) : make_tensorrt_backend(run, options);
}

}  // namespace atm
