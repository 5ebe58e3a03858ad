// A run folder of atm-export as a C++ session: checked, loaded, warmed up, thread-safe.
//
//   atm::Session session("build/deit_s");
//   auto labels = session.top_k(session.predict({atm::read_jpeg("cat.jpeg")}).data(), 5);
//
// Every failure is an atm::Error with a status of its own. C callers, and what holds between
// versions: atm_runtime.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "atm_runtime/atm_runtime.h"

namespace atm {

class ATM_API Error : public std::runtime_error {
 public:
  Error(atm_status status, const std::string& message)
      : std::runtime_error(one_line(message)), status_(status) {}
  atm_status status() const noexcept { return status_; }

 private:
  // File names and other libraries' messages may hold line breaks.
  static std::string one_line(std::string text) {
    for (char& c : text) {
      if (static_cast<unsigned char>(c) < 32 || c == 127) c = ' ';
    }
    return text;
  }

  atm_status status_;
};

// RGB, 8 bits a channel, rows from top to bottom, [height, width, 3].
struct Picture {
  std::size_t width = 0;
  std::size_t height = 0;
  std::vector<std::uint8_t> rgb;
};

// Limits of a picture, those of atm_export/pictures.py; a test compares them.
constexpr std::size_t kMostPixels = 67108864;
constexpr std::size_t kMostAspect = 32;
constexpr std::size_t kMostResized = 67108864;  // pixels after the resize, before the crop
constexpr std::size_t kMostBytes = 536870912;   // of the file
constexpr int kMostScans = 500;  // a progressive file of a few kB can ask for hours of work

constexpr int kMostThreads = 256;

// Decode a JPEG file as Pillow does (EXIF orientation is ignored there too).
ATM_API Picture decode_jpeg(const std::uint8_t* data, std::size_t size,
                            std::size_t most_pixels = kMostPixels);
ATM_API Picture read_jpeg(const std::string& path);

struct Options {
  // A TensorRT engine of the folder by name, or a graph of it in low precision
  // ("model.int8.onnxruntime.onnx", on the CPU alone); empty: model.onnx in ONNX Runtime.
  std::string engine;
  int threads = 0;              // intra-op threads, kMostThreads at most; 0: all cores
  bool cuda = false;            // ONNX Runtime's CUDA provider
  bool warm_up = true;          // run golden images and compare, before the first request
  bool allow_unproven = false;  // take a run whose parity was not proven
};

struct Label {
  std::size_t index = 0;
  std::string name;
  double probability = 0;  // softmax over all classes
};

// One output of a run: float32 [images, shape...].
struct Output {
  std::string name;
  std::vector<std::size_t> shape;  // of one image's answer
};

// One comparison with the numbers that PyTorch gave at export time.
struct Comparison {
  std::string what;
  double difference = 0;
  double allowed = 0;
  bool same_top1 = true;
  bool ok() const { return difference <= allowed && same_top1; }
};

class Backend;
class Run;

class ATM_API Session {
 public:
  // Checks every byte of the folder against its manifest first. Throws Error.
  explicit Session(const std::string& folder, const Options& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // The task's main output, all finite (of a classifier logits [pictures, classes], row by row).
  // All pictures go in as one batch; with the policy "adaptive" what shares a batch shares its
  // number of merges. A model of one channel sees a picture's grey; Error ATM_ARGUMENT where it has
  // other than one or three, which `run` takes. Safe from any thread.
  std::vector<float> predict(const std::vector<Picture>& pictures) const;

  // The same of what the graph takes: float32 [n, C, H, W] normalised, or uint8 [n, H, W, C].
  std::vector<float> run(const void* image, std::size_t images) const;

  // All outputs by name, of pictures and of what the graph takes.
  std::map<std::string, std::vector<float>> predict_all(const std::vector<Picture>& pictures) const;
  std::map<std::string, std::vector<float>> run_all(const void* image, std::size_t images) const;

  // What is answered, the main output first.
  std::vector<Output> outputs() const;
  const std::string& task() const;   // classify, or another's name
  const std::string& ranks() const;  // the output whose rows rank classes; empty: none does

  // The array that `run` takes, for one picture: bytes of float32 or uint8.
  std::vector<std::uint8_t> prepare(const Picture& picture) const;

  // The k likeliest classes of one row of the output that ranks them; Error ATM_ARGUMENT where the
  // task has none.
  std::vector<Label> top_k(const float* row, std::size_t k) const;

  // Every golden vector: each image alone, a batch, a JPEG file.
  std::vector<Comparison> check_golden() const;

  std::size_t classes() const;      // how many are ranked; 0: none
  std::size_t image_bytes() const;  // of one prepared image
  std::string label(std::size_t index) const;
  const std::string& about() const;   // what runs the model
  const std::string& policy() const;  // adaptive, per-image or frozen

 private:
  // Outputs as the backend gives them, for a comparison to judge.
  using Answers = std::vector<std::vector<float>>;
  ATM_LOCAL Answers answer(const void* image, std::size_t images) const;
  ATM_LOCAL Answers answer_pixels(const std::uint8_t* pixels, std::size_t images) const;
  ATM_LOCAL Answers answer_pictures(const std::vector<Picture>& pictures) const;
  ATM_LOCAL std::size_t pixel_bytes() const;  // of one image after the crop
  ATM_LOCAL Comparison judge(const std::string& what, std::size_t output,
                             const std::vector<float>& ours, const std::vector<float>& theirs,
                             double tolerance) const;
  ATM_LOCAL void warm_up() const;

  std::unique_ptr<Run> run_;
  std::string engine_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace atm
