// atm_logits FOLDER jpeg IMAGE...    logits of each image alone, as raw float32 on stdout
// atm_logits FOLDER tensor FILE      the same for prepared images lying one after another in FILE
// atm_logits FOLDER pixels IMAGE...  the prepared images themselves
// $ATM_ENGINE: an engine of the folder, or a graph in low precision, instead of model.onnx
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "atm_runtime/atm_runtime.hpp"

namespace {

template <typename T>
void put(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

void tensor(const atm::Session& session, const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> data{std::istreambuf_iterator<char>(file), {}};
  const std::size_t step = session.image_bytes();
  for (std::size_t at = 0; at + step <= data.size(); at += step) put(session.run(&data[at], 1));
}

}  // namespace

int main(int count, char** values) {
  if (count < 4) return 2;
  const std::string mode = values[2];
  try {
    atm::Options options;
    if (const char* engine = std::getenv("ATM_ENGINE")) options.engine = engine;
    const atm::Session session(values[1], options);
    for (int i = 3; i < count; ++i) {
      if (mode == "tensor") tensor(session, values[i]);
      if (mode == "jpeg") put(session.predict({atm::read_jpeg(values[i])}));
      if (mode == "pixels") put(session.prepare(atm::read_jpeg(values[i])));
    }
  } catch (const atm::Error& error) {
    std::fprintf(stderr, "atm_logits: %s\n", error.what());
    return 10 + static_cast<int>(error.status());
  }
  return 0;
}
