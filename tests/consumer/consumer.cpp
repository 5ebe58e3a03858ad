// consumer FOLDER IMAGE.jpg: the logits as raw float32, through the C++ API.
#include <atm_runtime/atm_runtime.hpp>
#include <cstdio>

int main(int count, char** values) {
  if (count != 3) return 2;
  try {
    atm::Options options;
    options.threads = 1;
    const atm::Session session(values[1], options);
    const std::vector<float> logits = session.predict({atm::read_jpeg(values[2])});
    std::fwrite(logits.data(), sizeof(float), logits.size(), stdout);
  } catch (const atm::Error& error) {
    std::fprintf(stderr, "consumer: %s\n", error.what());
    return 1;
  }
  return 0;
}
