#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "backend.hpp"
#include "preprocess.hpp"
#include "tensors.hpp"
#include "verdict.hpp"

namespace atm {
namespace {

constexpr std::size_t kMostImages = 1 << 16;

std::unique_ptr<Backend> backend_of(const Run& run, const Options& options) {
  if (!options.engine.empty()) return make_tensorrt_backend(run, options);
  return make_onnx_backend(run.read("model.onnx"), run.facts(), options);
}

std::vector<float> finite(std::vector<float> logits) {
  if (!all_finite(logits.data(), logits.size())) {
    throw Error(ATM_NOT_FINITE, "the logits are not finite (NaN or infinity)");
  }
  return logits;
}

// The golden file with its shapes checked against the manifest.
class GoldenVectors {
 public:
  explicit GoldenVectors(const Run& run) : facts_(run.facts()) {
    if (!facts_.has_golden) {
      throw Error(ATM_MISSING_FILE, run.folder() + " holds no golden vectors; export again");
    }
    file_ = run.read(facts_.golden.file);
    tensors_ = tensors_of(file_);
    const Preprocessing& how = facts_.preprocessing;
    const std::size_t image = how.height * how.width * 3;
    const std::size_t images = get("images").rows(), batch = get("batch_logits").rows();
    const bool fits = images > 0 && batch > 0 && batch <= images && !get("images").floats &&
                      get("images").count == images * image && !get("picture").floats &&
                      get("picture").count > 0 &&
                      get("logits").count == images * facts_.classes &&
                      get("batch_logits").count == batch * facts_.classes &&
                      get("picture_pixels").count == image && !get("picture_pixels").floats &&
                      get("picture_logits").count == facts_.classes;
    if (!fits) throw Error(ATM_CHANGED_FILE, "the golden vectors do not fit the manifest");
  }

  const Tensor& get(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(ATM_CHANGED_FILE, "no golden '" + name + "'");
    return found->second;
  }

 private:
  const Facts& facts_;
  Bytes file_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace

Session::Session(const std::string& folder, const Options& options) : engine_(options.engine) {
  if (options.threads < 0 || options.threads > kMostThreads) {
    throw Error(ATM_ARGUMENT, "threads " + std::to_string(options.threads) +
                                  ": give 0 (all cores) to " + std::to_string(kMostThreads));
  }
  run_ = std::make_unique<Run>(folder, options.allow_unproven);
  backend_ = backend_of(*run_, options);
  if (options.warm_up && run_->facts().has_golden) warm_up();
}

Session::~Session() = default;

void Session::warm_up() const {
  const GoldenVectors golden(*run_);
  const std::size_t count = std::min<std::size_t>(golden.get("images").rows(), 2);
  const auto theirs = golden.get("logits").values();
  for (std::size_t i = 0; i < count; ++i) {
    const auto logits = answer_pixels(golden.get("images").data + i * pixel_bytes(), 1);
    const auto row = theirs.begin() + static_cast<std::ptrdiff_t>(i * classes());
    const Comparison found =
        judge("logits", logits, {row, row + static_cast<std::ptrdiff_t>(classes())},
              run_->facts().golden.logits);
    if (found.ok()) continue;
    throw Error(ATM_GOLDEN_MISMATCH, run_->folder() + ": logits differ by " +
                                         std::to_string(found.difference) + "; this machine (" +
                                         about() + ") does not compute what was exported");
  }
}

Comparison Session::judge(const std::string& what, const std::vector<float>& ours,
                       const std::vector<float>& theirs, double tolerance) const {
  if (engine_.empty()) return compare(what, ours, theirs, classes(), tolerance);
  return compare_angle(what, ours, theirs, classes(), run_->facts().engines.at(engine_).cosine);
}

std::vector<Comparison> Session::check_golden() const {
  const GoldenVectors golden(*run_);
  const Golden& allowed = run_->facts().golden;
  const Tensor& images = golden.get("images");
  std::vector<float> alone;
  for (std::size_t i = 0; i < images.rows(); ++i) {
    const auto logits = answer_pixels(images.data + i * pixel_bytes(), 1);
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  const std::size_t batch = golden.get("batch_logits").rows();
  const Tensor& file = golden.get("picture");
  const Bytes pixels = crop(decode_jpeg(file.data, file.count), run_->facts().preprocessing);
  int levels = 0;
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    levels = std::max(levels, std::abs(pixels[i] - golden.get("picture_pixels").data[i]));
  }
  const auto finding = [&](const char* what, const std::vector<float>& ours, const char* name,
                           double tolerance) {
    return judge(what, ours, golden.get(name).values(), tolerance);
  };
  return {finding("logits of single images", alone, "logits", allowed.logits),
          finding("logits of a batch", answer_pixels(images.data, batch), "batch_logits",
                  allowed.logits),
          Comparison{"grey levels of a JPEG file", double(levels), allowed.grey_levels, true},
          finding("logits of a JPEG file", answer_pixels(pixels.data(), 1), "picture_logits",
                  allowed.picture_logits)};
}

std::vector<float> Session::answer_pixels(const std::uint8_t* pixels, std::size_t images) const {
  if (run_->facts().uint8) return answer(pixels, images);
  return answer(normalize(pixels, images, run_->facts().preprocessing).data(), images);
}

std::vector<float> Session::answer(const void* image, std::size_t images) const {
  if (image == nullptr || images == 0 || images > kMostImages) {
    throw Error(ATM_ARGUMENT, "give 1 to " + std::to_string(kMostImages) + " images");
  }
  return backend_->run(image, images);
}

std::vector<float> Session::run(const void* image, std::size_t images) const {
  return finite(answer(image, images));
}

std::vector<float> Session::predict(const std::vector<Picture>& pictures) const {
  Bytes batch;
  for (const Picture& picture : pictures) {
    const Bytes pixels = crop(picture, run_->facts().preprocessing);
    batch.insert(batch.end(), pixels.begin(), pixels.end());
  }
  if (batch.empty()) throw Error(ATM_ARGUMENT, "no image given");
  return finite(answer_pixels(batch.data(), pictures.size()));
}

std::vector<std::uint8_t> Session::prepare(const Picture& picture) const {
  Bytes pixels = crop(picture, run_->facts().preprocessing);
  if (run_->facts().uint8) return pixels;
  const auto image = normalize(pixels.data(), 1, run_->facts().preprocessing);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(image.data());
  return {bytes, bytes + image.size() * sizeof(float)};
}

std::vector<Label> Session::top_k(const float* logits, std::size_t k) const {
  if (logits == nullptr || k == 0) throw Error(ATM_ARGUMENT, "top_k: give 1 or more");
  const std::size_t n = classes();
  if (!all_finite(logits, n)) throw Error(ATM_NOT_FINITE, "top_k: the logits are not finite");
  k = std::min(k, n);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += std::exp(double{logits[i]} - logits[order[0]]);
  std::vector<Label> labels;
  for (std::size_t i = 0; i < k; ++i) {
    const double share = std::exp(double{logits[order[i]]} - logits[order[0]]) / sum;
    labels.push_back({order[i], label(order[i]), share});
  }
  return labels;
}

std::size_t Session::classes() const { return run_->facts().classes; }

std::size_t Session::pixel_bytes() const {
  return run_->facts().preprocessing.height * run_->facts().preprocessing.width * 3;
}

std::size_t Session::image_bytes() const {
  return pixel_bytes() * (run_->facts().uint8 ? 1 : sizeof(float));
}

std::string Session::label(std::size_t index) const {
  const auto& labels = run_->facts().labels;
  if (index >= classes()) return "";
  return labels.empty() ? std::to_string(index) : labels[index];
}

const std::string& Session::about() const { return backend_->about; }
const std::string& Session::policy() const { return run_->facts().policy; }

}  // namespace atm
