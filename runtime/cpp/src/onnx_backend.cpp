#include <onnxruntime_cxx_api.h>

#include "backend.hpp"

namespace atm {
namespace {

// One environment for the process, as ONNX Runtime asks; never destroyed, so that sessions of
// static lifetime may end after it.
Ort::Env& environment() {
  static auto* env = new Ort::Env(ORT_LOGGING_LEVEL_FATAL, "atm");
  return *env;
}

// TF32 rounds similarities to 10 bits, and thresholds then decide otherwise than in PyTorch.
void append_cuda(Ort::SessionOptions& options) {
  const OrtApi& api = Ort::GetApi();
  OrtCUDAProviderOptionsV2* made = nullptr;
  Ort::ThrowOnError(api.CreateCUDAProviderOptions(&made));
  const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> cuda(
      made, api.ReleaseCUDAProviderOptions);
  const char* key = "use_tf32";
  const char* value = "0";
  Ort::ThrowOnError(api.UpdateCUDAProviderOptions(cuda.get(), &key, &value, 1));
  options.AppendExecutionProvider_CUDA_V2(*cuda);
}

// The files beside a graph, from memory: what was hashed is what runs. ONNX Runtime copies what it
// needs while a session is made.
void give_weights(Ort::SessionOptions& options, const SavedGraph& graph) {
  if (graph.beside.empty()) return;
  std::vector<std::basic_string<ORTCHAR_T>> names;
  std::vector<char*> buffers;
  std::vector<std::size_t> sizes;
  for (const auto& [name, data] : graph.beside) {
    names.emplace_back(name.begin(), name.end());
    auto* bytes = const_cast<std::uint8_t*>(data.data());  // it only reads them
    buffers.push_back(reinterpret_cast<char*>(bytes));
    sizes.push_back(data.size());
  }
  options.AddExternalInitializersFromFilesInMemory(names, buffers, sizes);
}

Ort::SessionOptions session_options(const SavedGraph& graph, const Options& options) {
  Ort::SessionOptions made;
  made.SetIntraOpNumThreads(options.threads);
  made.SetGraphOptimizationLevel(ORT_ENABLE_ALL);
  if (options.cuda) append_cuda(made);
  give_weights(made, graph);
  return made;
}

class OnnxBackend final : public Backend {
 public:
  OnnxBackend(const SavedGraph& graph, const Facts& facts, const Options& options)
      : facts_(facts),
        session_(environment(), graph.graph.data(), graph.graph.size(),
                 session_options(graph, options)),
        memory_(Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault)) {
    about = "ONNX Runtime " + Ort::GetVersionString() + (options.cuda ? ", CUDA" : ", CPU");
  }

  Answers run(const void* image, std::size_t images) override {
    try {
      return run_or_throw(image, images);
    } catch (const Ort::Exception& error) {
      throw Error(ATM_BACKEND, std::string("ONNX Runtime failed: ") + error.what());
    }
  }

 private:
  Answers run_or_throw(const void* image, std::size_t images) {
    const Ort::Value input = tensor(image, images);
    const char* in = facts_.input.name.c_str();
    std::vector<const char*> out;
    for (const OutputFacts& output : facts_.task.outputs) out.push_back(output.name.c_str());
    const auto made =
        session_.Run(Ort::RunOptions{nullptr}, &in, &input, 1, out.data(), out.size());
    Answers found;
    for (std::size_t i = 0; i < made.size(); ++i) {
      found.push_back(values(made[i], facts_.task.outputs[i], images));
    }
    return found;
  }

  static std::vector<float> values(const Ort::Value& made, const OutputFacts& output,
                                   std::size_t images) {
    const auto facts = made.GetTensorTypeAndShapeInfo();
    if (facts.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
      throw Error(ATM_BACKEND, output.name + " of another type than float32");
    }
    const std::size_t count = facts.GetElementCount();
    if (count != images * output.row()) throw Error(ATM_BACKEND, output.name + " of another shape");
    const float* first = made.GetTensorData<float>();
    return {first, first + count};
  }

  // A view of the caller's image; ONNX Runtime does not write to inputs.
  Ort::Value tensor(const void* image, std::size_t images) const {
    const auto shape = facts_.input.shape(images);
    const std::size_t count = images * facts_.input.preprocessing.numbers();
    if (facts_.input.uint8) {
      auto* data = const_cast<std::uint8_t*>(static_cast<const std::uint8_t*>(image));
      return Ort::Value::CreateTensor<std::uint8_t>(memory_, data, count, shape.data(),
                                                    shape.size());
    }
    auto* data = const_cast<float*>(static_cast<const float*>(image));
    return Ort::Value::CreateTensor<float>(memory_, data, count, shape.data(), shape.size());
  }

  Facts facts_;
  Ort::Session session_;
  Ort::MemoryInfo memory_;
};

}  // namespace

std::unique_ptr<Backend> make_onnx_backend(const SavedGraph& graph, const Facts& facts,
                                           const Options& options) {
  try {
    return std::make_unique<OnnxBackend>(graph, facts, options);
  } catch (const Ort::Exception& error) {
    throw Error(ATM_BACKEND, std::string("ONNX Runtime does not load the model: ") + error.what());
  }
}

}  // namespace atm
