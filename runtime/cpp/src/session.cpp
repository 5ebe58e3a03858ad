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

double least_cosine(const Facts& facts, const std::string& engine) {
  const auto low = facts.low_precision.find(engine);
  return low != facts.low_precision.end() ? low->second.cosine : facts.engines.at(engine).cosine;
}

Answers finite(Answers answers, const TaskFacts& task) {
  for (std::size_t i = 0; i < answers.size(); ++i) {
    if (all_finite(answers[i].data(), answers[i].size())) continue;
    throw Error(ATM_NOT_FINITE,
                "the " + task.outputs[i].name + " are not finite (NaN or infinity)");
  }
  return answers;
}

std::map<std::string, std::vector<float>> named(Answers answers, const TaskFacts& task) {
  std::map<std::string, std::vector<float>> found;
  for (std::size_t i = 0; i < answers.size(); ++i) {
    found[task.outputs[i].name] = std::move(answers[i]);
  }
  return found;
}

double grey_levels(const Bytes& ours, const std::uint8_t* theirs) {
  int most = 0;
  for (std::size_t i = 0; i < ours.size(); ++i) most = std::max(most, std::abs(ours[i] - theirs[i]));
  return most;
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
    if (!images_fit() || (pictured() && !picture_fits())) {
      throw Error(ATM_CHANGED_FILE, "the golden vectors do not fit the manifest");
    }
  }

  // Whether there is a JPEG file: only a model of grey or RGB takes one.
  bool pictured() const { return facts_.input.preprocessing.pictured(); }

  // How many of the images were answered as one batch.
  std::size_t batch() const { return get("batch_" + facts_.task.outputs[0].name).rows(); }

  const Tensor& get(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) throw Error(ATM_CHANGED_FILE, "no golden '" + name + "'");
    return found->second;
  }

 private:
  bool images_fit() const {
    const Tensor& shown = get("images");
    const std::size_t images = shown.rows();
    bool fits = images > 0 && batch() > 0 && batch() <= images && !shown.floats &&
                shown.count == images * facts_.input.preprocessing.numbers();
    for (const OutputFacts& output : facts_.task.outputs) {
      fits = fits && get(output.name).count == images * output.row() &&
             get("batch_" + output.name).count == batch() * output.row();
    }
    return fits;
  }

  bool picture_fits() const {
    const Tensor &file = get("picture"), &pixels = get("picture_pixels");
    bool fits = !file.floats && file.count > 0 && !pixels.floats &&
                pixels.count == facts_.input.preprocessing.numbers();
    for (const OutputFacts& output : facts_.task.outputs) {
      fits = fits && get("picture_" + output.name).count == output.row();
    }
    return fits;
  }

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
  const auto& outputs = run_->facts().task.outputs;
  for (std::size_t i = 0; i < count; ++i) {
    const Answers ours = answer_pixels(golden.get("images").data + i * pixel_bytes(), 1);
    for (std::size_t k = 0; k < outputs.size(); ++k) {
      const auto theirs = golden.get(outputs[k].name).values();
      const auto size = static_cast<std::ptrdiff_t>(outputs[k].row());
      const auto row = theirs.begin() + static_cast<std::ptrdiff_t>(i) * size;
      const Comparison found =
          judge(outputs[k].name, k, ours[k], {row, row + size}, outputs[k].allowed);
      if (found.ok()) continue;
      throw Error(ATM_GOLDEN_MISMATCH, run_->folder() + ": " + outputs[k].name + " differ by " +
                                           std::to_string(found.difference) + "; this machine (" +
                                           about() + ") does not compute what was exported");
    }
  }
}

// By the output's agreement; of an engine or in low precision, which round more, by the angle.
Comparison Session::judge(const std::string& what, std::size_t output,
                          const std::vector<float>& ours, const std::vector<float>& theirs,
                          double tolerance) const {
  const OutputFacts& facts = run_->facts().task.outputs[output];
  if (engine_.empty()) return compare(what, ours, theirs, facts, tolerance);
  const double least = least_cosine(run_->facts(), engine_);
  return compare_angle(what, ours, theirs, facts.length(), 1 - least);
}

std::vector<Comparison> Session::check_golden() const {
  const GoldenVectors golden(*run_);
  const auto& outputs = run_->facts().task.outputs;
  const Tensor& images = golden.get("images");
  Answers alone(outputs.size());
  for (std::size_t i = 0; i < images.rows(); ++i) {
    const Answers one = answer_pixels(images.data + i * pixel_bytes(), 1);
    for (std::size_t k = 0; k < one.size(); ++k) {
      alone[k].insert(alone[k].end(), one[k].begin(), one[k].end());
    }
  }
  const Answers batch = answer_pixels(images.data, golden.batch());
  std::vector<Comparison> found;
  Answers shown;
  if (golden.pictured()) {
    const Tensor& file = golden.get("picture");
    const Bytes pixels = crop(decode_jpeg(file.data, file.count), run_->facts().input.preprocessing);
    found.push_back({"grey levels of a JPEG file",
                     grey_levels(pixels, golden.get("picture_pixels").data),
                     run_->facts().golden.grey_levels, true});
    shown = answer_pixels(pixels.data(), 1);
  }
  for (std::size_t k = 0; k < outputs.size(); ++k) {
    const std::string& name = outputs[k].name;
    const auto add = [&](const char* what, const Answers& ours, const char* kind,
                         double tolerance) {
      const auto theirs = golden.get(kind + name).values();
      found.push_back(judge(name + what, k, ours[k], theirs, tolerance));
    };
    add(" of single images", alone, "", outputs[k].allowed);
    add(" of a batch", batch, "batch_", outputs[k].allowed);
    if (golden.pictured()) add(" of a JPEG file", shown, "picture_", outputs[k].picture);
  }
  return found;
}

Session::Answers Session::answer_pixels(const std::uint8_t* pixels, std::size_t images) const {
  if (run_->facts().input.uint8) return answer(pixels, images);
  return answer(normalize(pixels, images, run_->facts().input.preprocessing).data(), images);
}

Session::Answers Session::answer(const void* image, std::size_t images) const {
  if (image == nullptr || images == 0 || images > kMostImages) {
    throw Error(ATM_ARGUMENT, "give 1 to " + std::to_string(kMostImages) + " images");
  }
  return backend_->run(image, images);
}

std::vector<float> Session::run(const void* image, std::size_t images) const {
  return finite(answer(image, images), run_->facts().task)[0];
}

std::vector<float> Session::predict(const std::vector<Picture>& pictures) const {
  return finite(answer_pictures(pictures), run_->facts().task)[0];
}

std::map<std::string, std::vector<float>> Session::run_all(const void* image,
                                                           std::size_t images) const {
  const TaskFacts& task = run_->facts().task;
  return named(finite(answer(image, images), task), task);
}

std::map<std::string, std::vector<float>> Session::predict_all(
    const std::vector<Picture>& pictures) const {
  const TaskFacts& task = run_->facts().task;
  return named(finite(answer_pictures(pictures), task), task);
}

Session::Answers Session::answer_pictures(const std::vector<Picture>& pictures) const {
  Bytes batch;
  for (const Picture& picture : pictures) {
    const Bytes pixels = crop(picture, run_->facts().input.preprocessing);
    batch.insert(batch.end(), pixels.begin(), pixels.end());
  }
  if (batch.empty()) throw Error(ATM_ARGUMENT, "no image given");
  return answer_pixels(batch.data(), pictures.size());
}

std::vector<std::uint8_t> Session::prepare(const Picture& picture) const {
  const InputFacts& input = run_->facts().input;
  Bytes pixels = crop(picture, input.preprocessing);
  if (input.uint8) return pixels;
  const auto image = normalize(pixels.data(), 1, input.preprocessing);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(image.data());
  return {bytes, bytes + image.size() * sizeof(float)};
}

std::vector<Label> Session::top_k(const float* row, std::size_t k) const {
  if (row == nullptr || k == 0) throw Error(ATM_ARGUMENT, "top_k: give 1 or more");
  const std::size_t n = classes();
  if (n == 0) throw Error(ATM_ARGUMENT, "top_k: the task '" + task() + "' ranks no classes");
  if (!all_finite(row, n)) throw Error(ATM_NOT_FINITE, "top_k: the row is not finite");
  k = std::min(k, n);
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return row[a] > row[b]; });
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += std::exp(double{row[i]} - row[order[0]]);
  std::vector<Label> labels;
  for (std::size_t i = 0; i < k; ++i) {
    const double share = std::exp(double{row[order[i]]} - row[order[0]]) / sum;
    labels.push_back({order[i], label(order[i]), share});
  }
  return labels;
}

std::size_t Session::classes() const { return run_->facts().task.classes(); }

std::vector<Output> Session::outputs() const {
  std::vector<Output> found;
  for (const OutputFacts& output : run_->facts().task.outputs) {
    found.push_back({output.name, output.shape});
  }
  return found;
}

const std::string& Session::task() const { return run_->facts().task.name; }
const std::string& Session::ranks() const { return run_->facts().task.ranks; }

std::size_t Session::pixel_bytes() const {
  return run_->facts().input.preprocessing.numbers();
}

std::size_t Session::image_bytes() const {
  return run_->facts().input.bytes();
}

std::string Session::label(std::size_t index) const {
  const auto& labels = run_->facts().labels;
  if (index >= classes()) return "";
  return labels.empty() ? std::to_string(index) : labels[index];
}

const std::string& Session::about() const { return backend_->about; }
const std::string& Session::policy() const { return run_->facts().policy; }

}  // namespace atm
