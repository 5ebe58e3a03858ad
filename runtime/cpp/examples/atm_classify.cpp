// atm_classify [--run FOLDER] [--top K] [--engine NAME] [--threads N] IMAGE.jpg...
#include <cstdio>
#include <cstdlib>
#include <string>

#include "atm_runtime/atm_runtime.hpp"

namespace {

struct Arguments {
  std::string run = ".";
  std::size_t top = 5;
  atm::Options options;
  std::vector<std::string> images;
};

int usage() {
  std::fprintf(stderr,
               "usage: atm_classify [--run FOLDER] [--top K] [--engine NAME] [--threads N] "
               "IMAGE.jpg...\nFOLDER is what `atm-export MODEL` wrote (default: $ATM_RUN, or the "
               "current folder)\n");
  return 2;
}

bool parse(int count, char** values, Arguments& found) {
  if (const char* run = std::getenv("ATM_RUN")) found.run = run;
  for (int i = 1; i < count; ++i) {
    const std::string name = values[i];
    if (name.rfind("--", 0) != 0) {
      found.images.push_back(name);
      continue;
    }
    if (++i == count) return false;
    const std::string value = values[i];
    if (name == "--run") found.run = value;
    else if (name == "--top") found.top = std::strtoul(value.c_str(), nullptr, 10);
    else if (name == "--engine") found.options.engine = value;
    else if (name == "--threads") found.options.threads = std::atoi(value.c_str());
    else return false;
  }
  return !found.images.empty() && found.top > 0;
}

}  // namespace

int main(int count, char** values) {
  Arguments arguments;
  if (!parse(count, values, arguments)) return usage();
  try {
    const atm::Session session(arguments.run, arguments.options);
    for (const std::string& path : arguments.images) {
      const auto logits = session.predict({atm::read_jpeg(path)});
      std::printf("%s\n", path.c_str());
      for (const atm::Label& label : session.top_k(logits.data(), arguments.top)) {
        std::printf("  %6.2f %%  %s\n", 100 * label.probability, label.name.c_str());
      }
    }
  } catch (const atm::Error& error) {
    std::fprintf(stderr, "atm_classify: %s\n", error.what());
    return 10 + static_cast<int>(error.status());
  }
  return 0;
}
