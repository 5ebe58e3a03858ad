// atm_stress FOLDER [THREADS] [REQUESTS]: every answer equals the single-threaded one, and memory
// grows by no more than 5 % after warm-up.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <thread>

#include <unistd.h>

#include "atm_runtime/atm_runtime.hpp"

namespace {

constexpr std::size_t kPictures = 8;

double resident_mb() {
  std::ifstream file("/proc/self/statm");
  double all = 0, resident = 0;
  file >> all >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

std::vector<std::vector<atm::Picture>> batches() {
  std::mt19937 noise(0);
  std::vector<std::vector<atm::Picture>> made(kPictures);
  for (std::size_t i = 0; i < kPictures; ++i) {
    for (std::size_t k = 0; k <= i % 3; ++k) {
      atm::Picture picture{64 + 8 * i, 72, {}};
      picture.rgb.resize(picture.width * picture.height * 3);
      for (auto& value : picture.rgb) value = static_cast<std::uint8_t>(noise());
      made[i].push_back(std::move(picture));
    }
  }
  return made;
}

// Wrong answers and errors of `threads` threads of `requests` requests each.
int ask(const atm::Session& session, int threads, int requests) {
  const auto inputs = batches();
  std::vector<std::vector<float>> expected;
  for (const auto& input : inputs) expected.push_back(session.predict(input));
  std::atomic<int> wrong{0};
  const auto work = [&](int first) {
    for (int i = 0; i < requests; ++i) {
      const std::size_t k = static_cast<std::size_t>(first + i) % inputs.size();
      try {
        if (session.predict(inputs[k]) != expected[k]) ++wrong;
      } catch (const std::exception&) {
        ++wrong;
      }
    }
  };
  std::vector<std::thread> pool;
  for (int t = 0; t < threads; ++t) pool.emplace_back(work, t);
  for (auto& thread : pool) thread.join();
  return wrong;
}

}  // namespace

int main(int count, char** values) {
  if (count < 2) return 2;
  const int threads = count > 2 ? std::atoi(values[2]) : 8;
  const int requests = count > 3 ? std::atoi(values[3]) : 1000;
  try {
    atm::Options options;
    options.threads = 1;
    const atm::Session session(values[1], options);
    int wrong = ask(session, threads, requests / 10 + 10);
    const double before = resident_mb();
    wrong += ask(session, threads, requests);
    const double growth = 100 * (resident_mb() / before - 1);
    std::printf("%d threads x %d requests: %d wrong, memory %.0f MB %+.1f %%\n", threads, requests,
                wrong, before, growth);
    return wrong == 0 && growth <= 5 ? 0 : 1;
  } catch (const atm::Error& error) {
    std::fprintf(stderr, "atm_stress: %s\n", error.what());
    return 10 + static_cast<int>(error.status());
  }
}
