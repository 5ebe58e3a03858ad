// TensorRT 10 and 11, and TensorRT-RTX 1.x: one documented API. Compiled where an SDK is given.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstring>
#include <mutex>

#include "backend.hpp"

namespace atm {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(ATM_BACKEND, std::string(what) + ": " + cudaGetErrorString(status));
}

// Keeps the last error for the message of the exception.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR) return;
    const std::lock_guard<std::mutex> guard(mutex_);
    std::strncpy(last_, text, sizeof(last_) - 1);
  }
  std::string last() {
    const std::lock_guard<std::mutex> guard(mutex_);
    return last_;
  }

 private:
  std::mutex mutex_;
  char last_[512] = {};
};

// Device memory that only grows.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  // True where the memory moved. Null data() where the device has none left.
  bool reserve(std::size_t size) noexcept {
    if (size <= size_) return false;
    cudaFree(data_);
    data_ = nullptr;
    size_ = cudaMalloc(&data_, size) == cudaSuccess ? size : 0;
    return true;
  }
  void* data() const noexcept { return data_; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

// Where an output goes whose size TensorRT knows only while it runs.
class EngineOutput final : public nvinfer1::IOutputAllocator {
 public:
  void* reallocateOutputAsync(const char*, void*, std::uint64_t size, std::uint64_t,
                              cudaStream_t) noexcept override {
    moved = buffer.reserve(static_cast<std::size_t>(std::max<std::uint64_t>(size, 1))) || moved;
    return buffer.data();
  }
  void notifyShape(const char*, const nvinfer1::Dims& dims) noexcept override {
    count = 1;
    for (std::int32_t i = 0; i < dims.nbDims; ++i) count *= static_cast<std::size_t>(dims.d[i]);
  }

  DeviceBuffer buffer;
  std::size_t count = 0;
  bool moved = false;
};

// Everything that one inference at a time needs; no two threads share one.
struct Context {
  std::unique_ptr<nvinfer1::IExecutionContext> execution;
  cudaStream_t stream = nullptr;
  DeviceBuffer input;
  std::vector<std::unique_ptr<EngineOutput>> outputs;  // in the task's order
  cudaGraphExec_t graph = nullptr;
  std::size_t images = 0;  // of the last inference; the graph is for these
  bool capturable = false;

  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() {
    forget_graph();
    execution.reset();
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  void forget_graph() {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
    graph = nullptr;
  }
};

std::string version() {
  return std::to_string(getInferLibMajorVersion()) + "." +
         std::to_string(getInferLibMinorVersion()) + "." +
         std::to_string(getInferLibPatchVersion());
}

// Whether an engine of version `built` (10.13.2.6) may run here: the first three numbers, or the
// first one where it was built compatible.
bool version_fits(const std::string& built, bool any_version) {
  const std::string here = version() + ".";
  const std::size_t length = any_version ? here.find('.') + 1 : here.size();
  return (built + ".").compare(0, length, here, 0, length) == 0;
}

int compute_capability() {
  int device = 0, major = 0, minor = 0;
  check(cudaGetDevice(&device), "no CUDA device");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "CUDA device");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "CUDA device");
  return 10 * major + minor;
}

// Error unless the engine was made for this TensorRT and this GPU; before it is deserialised.
void require_fit(const Facts& facts, const std::string& name) {
  const auto found = facts.engines.find(name);
  if (found == facts.engines.end()) throw Error(ATM_MISSING_FILE, "no engine '" + name + "'");
  const EngineFacts& engine = found->second;
  const int sm = compute_capability();
  if (engine.flavor != ATM_TENSORRT_FLAVOR) {
    throw Error(ATM_ENGINE_MISMATCH, name + " is for TensorRT " + engine.flavor + ", this is " +
                                         ATM_TENSORRT_FLAVOR + "; build it again");
  }
  const bool listed = std::find(engine.sms.begin(), engine.sms.end(), sm) != engine.sms.end();
  if (!listed && !(engine.any_gpu && sm >= 80)) {
    throw Error(ATM_ENGINE_MISMATCH, name + " was not built for this GPU, SM " +
                                         std::to_string(sm) + "; build it again");
  }
  if (!version_fits(engine.tensorrt, engine.any_version)) {
    throw Error(ATM_ENGINE_VERSION, name + " was built by TensorRT " + engine.tensorrt + ", " +
                                        version() + " is installed; build it again");
  }
  if (!engine.fits_source) {
    throw Error(ATM_ENGINE_MISMATCH, name + " was built from another graph; build it again");
  }
}

class TensorRtBackend final : public Backend {
 public:
  TensorRtBackend(const Run& run, const std::string& name) : facts_(run.facts()) {
    require_fit(facts_, name);
    const Bytes plan = run.read(name);
    runtime_.reset(nvinfer1::createInferRuntime(logger_));
    if (runtime_) engine_.reset(runtime_->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine_) throw Error(ATM_BACKEND, name + ": " + logger_.last());
    about = std::string("TensorRT ") + ATM_TENSORRT_FLAVOR + " " + version() + ", " + name;
  }

  Answers run(const void* image, std::size_t images) override {
    std::unique_ptr<Context> context = take();
    Answers answers;
    for (const OutputFacts& output : facts_.task.outputs) answers.emplace_back(images * output.row());
    infer(*context, image, images, answers);  // a context that failed is not used again
    const std::lock_guard<std::mutex> guard(mutex_);
    free_.push_back(std::move(context));
    return answers;
  }

 private:
  std::unique_ptr<Context> take() {
    {
      const std::lock_guard<std::mutex> guard(mutex_);
      if (!free_.empty()) {
        auto context = std::move(free_.back());
        free_.pop_back();
        return context;
      }
    }
    auto context = std::make_unique<Context>();
    for (std::size_t i = 0; i < facts_.task.outputs.size(); ++i) {
      context->outputs.push_back(std::make_unique<EngineOutput>());
    }
    context->execution = new_execution();
    if (!context->execution) throw Error(ATM_BACKEND, "no context: " + logger_.last());
    check(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking), "stream");
    // Only a frozen schedule has static shapes inside; the others copy sizes to the host.
    context->capturable = facts_.policy == "frozen";
    return context;
  }

  std::unique_ptr<nvinfer1::IExecutionContext> new_execution() {
    using Execution = std::unique_ptr<nvinfer1::IExecutionContext>;
#ifdef TRT_MAJOR_RTX
    // RTX finishes kernels for each shape on the GPU; a CUDA graph must hold the finished ones.
    const std::unique_ptr<nvinfer1::IRuntimeConfig> config(engine_->createRuntimeConfig());
    if (!config) throw Error(ATM_BACKEND, "no runtime config: " + logger_.last());
    config->setDynamicShapesKernelSpecializationStrategy(
        nvinfer1::DynamicShapesKernelSpecializationStrategy::kEAGER);
    return Execution(engine_->createExecutionContext(config.get()));
#else
    return Execution(engine_->createExecutionContext());
#endif
  }

  void infer(Context& at, const void* image, std::size_t images, Answers& answers) {
    const std::size_t bytes = images * facts_.input.bytes();
    if (at.input.reserve(bytes) || at.images != images) at.forget_graph();
    if (at.input.data() == nullptr) throw Error(ATM_NO_MEMORY, "no device memory left");
    check(cudaMemcpyAsync(at.input.data(), image, bytes, cudaMemcpyHostToDevice, at.stream), "in");
    if (at.graph != nullptr) {
      check(cudaGraphLaunch(at.graph, at.stream), "graph");
    } else {
      bind(at, images);
      enqueue(at);
      bool moved = false;
      for (std::size_t i = 0; i < answers.size(); ++i) {
        if (at.outputs[i]->count != answers[i].size()) {
          throw Error(ATM_BACKEND, facts_.task.outputs[i].name + " of another shape");
        }
        moved = moved || at.outputs[i]->moved;
      }
      if (at.capturable && at.images == images && !moved) capture(at);
    }
    at.images = images;
    for (std::size_t i = 0; i < answers.size(); ++i) {
      at.outputs[i]->moved = false;
      check(cudaMemcpyAsync(answers[i].data(), at.outputs[i]->buffer.data(),
                            answers[i].size() * sizeof(float), cudaMemcpyDeviceToHost, at.stream),
            "out");
    }
    check(cudaStreamSynchronize(at.stream), "run");
  }

  void bind(Context& at, std::size_t images) {
    const auto shape = facts_.input.shape(images);
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    std::copy(shape.begin(), shape.end(), dims.d);
    const char* name = facts_.input.name.c_str();
    bool taken = at.execution->setInputShape(name, dims) &&
                 at.execution->setTensorAddress(name, at.input.data());
    for (std::size_t i = 0; i < at.outputs.size(); ++i) {
      const char* output = facts_.task.outputs[i].name.c_str();
      taken = taken && at.execution->setOutputAllocator(output, at.outputs[i].get());
    }
    if (!taken) {
      throw Error(ATM_ARGUMENT, "the engine does not take a batch of " + std::to_string(images) +
                                    ": " + logger_.last());
    }
  }

  void enqueue(Context& at) {
    if (!at.execution->enqueueV3(at.stream)) throw Error(ATM_BACKEND, "run: " + logger_.last());
  }

  // The second run of a batch size is recorded; where that fails, runs go on being enqueued.
  void capture(Context& at) {
    cudaGraph_t graph = nullptr;
    if (cudaStreamBeginCapture(at.stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return;
    const bool recorded = at.execution->enqueueV3(at.stream);
    const bool ended = cudaStreamEndCapture(at.stream, &graph) == cudaSuccess;
    if (!recorded || !ended || cudaGraphInstantiate(&at.graph, graph, 0) != cudaSuccess) {
      at.graph = nullptr;
      at.capturable = false;
      cudaGetLastError();
    }
    if (graph != nullptr) cudaGraphDestroy(graph);
  }

  Facts facts_;
  Logger logger_;
  std::unique_ptr<nvinfer1::IRuntime> runtime_;
  std::unique_ptr<nvinfer1::ICudaEngine> engine_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Context>> free_;
};

}  // namespace

std::unique_ptr<Backend> make_tensorrt_backend(const Run& run, const Options& options) {
  return std::make_unique<TensorRtBackend>(run, options.engine);
}

}  // namespace atm
