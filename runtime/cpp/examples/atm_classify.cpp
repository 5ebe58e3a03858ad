// atm_classify [--run FOLDER] [--top K] [--precision P] [--engine NAME] [--threads N] IMAGE.jpg...
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "atm_runtime/atm_runtime.hpp"

namespace {

constexpr std::size_t kMostTop = 1'000'000;

struct Arguments {
  std::string run = ".";
  std::size_t top = 5;
  atm::Options options;
  std::vector<std::string> images;
};

int usage() {
  std::fprintf(stderr,
               "usage: atm_classify [--run FOLDER] [--top K] [--precision fp32|int8] "
               "[--engine NAME] [--threads N] IMAGE.jpg...\n"
               "FOLDER is what `atm-export MODEL` wrote (default: $ATM_RUN, or the current folder); "
               "int8 is a graph of it for CPUs\n");
  return 2;
}

// Error ATM_ARGUMENT unless the whole value is a number within the bounds.
template <typename Number>
Number number(const std::string& name, const std::string& value, Number least, Number most) {
  Number found{};
  const char* end = value.data() + value.size();
  const auto [stop, failed] = std::from_chars(value.data(), end, found);
  if (failed == std::errc() && stop == end && found >= least && found <= most) return found;
  throw atm::Error(ATM_ARGUMENT, name + " '" + value + "': give a whole number from " +
                                     std::to_string(least) + " to " + std::to_string(most));
}

// The graph of ONNX Runtime in this precision, by its name; empty: model.onnx.
std::string graph_in(const std::string& precision) {
  if (precision == "fp32") return "";
  if (precision == "int8") return "model.int8.onnxruntime.onnx";
  throw atm::Error(ATM_ARGUMENT, "--precision '" + precision + "': give fp32 or int8");
}

bool parse(int count, char** values, Arguments& found) {
  const char* run = std::getenv("ATM_RUN");
  if (run != nullptr && *run != '\0') found.run = run;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name.rfind("--", 0) != 0) {
      found.images.push_back(name);
      continue;
    }
    if (++i == count) return false;
    const std::string value = values[i];
    if (name == "--run") found.run = value;
    else if (name == "--top") found.top = number<std::size_t>(name, value, 1, kMostTop);
    else if (name == "--engine") found.options.engine = value;
    else if (name == "--precision") found.options.engine = graph_in(value);
    else if (name == "--threads") found.options.threads = number(name, value, 0, atm::kMostThreads);
    else return false;
  }
  return !found.images.empty();
}

void classify(const Arguments& arguments) {
  const atm::Session session(arguments.run, arguments.options);
  if (session.ranks().empty()) {
    throw atm::Error(ATM_ARGUMENT, arguments.run + " answers the task '" + session.task() +
                                       "', which ranks no classes");
  }
  if (!arguments.options.engine.empty()) {
    std::fprintf(stderr, "atm_classify: runs on %s\n", session.about().c_str());
  }
  for (const std::string& path : arguments.images) {
    const auto answers = session.predict_all({atm::read_jpeg(path)});
    const std::vector<float>& row = answers.at(session.ranks());
    std::printf("%s\n", path.c_str());
    for (const atm::Label& label : session.top_k(row.data(), arguments.top)) {
      std::printf("  %6.2f %%  %s\n", 100 * label.probability, label.name.c_str());
    }
  }
}

// One line and the exit code.
int failed(const char* what, int code) {
  std::fprintf(stderr, "atm_classify: %s\n", what);
  return code;
}

}  // namespace

int main(int count, char** values) {
  Arguments arguments;
  try {
    if (!parse(count, values, arguments)) return usage();
  } catch (const atm::Error& error) {
    return failed(error.what(), 2);
  }
  try {
    classify(arguments);
  } catch (const atm::Error& error) {
    return failed(error.what(), 10 + static_cast<int>(error.status()));
  } catch (const std::bad_alloc&) {
    return failed("out of memory", 10 + static_cast<int>(ATM_NO_MEMORY));
  } catch (const std::exception& error) {
    return failed(error.what(), 10 + static_cast<int>(ATM_OTHER));
  }
  return 0;
}
