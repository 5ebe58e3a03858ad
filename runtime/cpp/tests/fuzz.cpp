// atm_fuzz FOLDER [SECONDS] [SEED]: malformed manifests (with seals that hold), golden files, JPEG
// files and truncated models. Each must be read or refused by an atm::Error; the sanitizers watch.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>

#include "../src/backend.hpp"
#include "../src/preprocess.hpp"
#include "../src/sha256.hpp"
#include "../src/tensors.hpp"

namespace {

using atm::Bytes;

class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}

  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

  Bytes mutated(Bytes data) {
    for (std::size_t n = 1 + below(4); n > 0 && !data.empty(); --n) {
      const std::size_t at = below(data.size());
      const auto from = data.begin() + static_cast<std::ptrdiff_t>(at);
      const std::size_t length = 1 + below(std::min<std::size_t>(data.size() - at, 64));
      const auto to = from + static_cast<std::ptrdiff_t>(length);
      switch (below(7)) {
        case 0: *from ^= static_cast<std::uint8_t>(1u << below(8)); break;
        case 1: *from = static_cast<std::uint8_t>(random_()); break;
        case 2: data.resize(at); break;
        case 3: data.erase(from, to); break;
        case 4: {
          const Bytes piece(from, to);
          const auto where = static_cast<std::ptrdiff_t>(below(data.size()));
          data.insert(data.begin() + where, piece.begin(), piece.end());
          break;
        }
        case 5: std::fill(from, to, static_cast<std::uint8_t>(below(2) * 255)); break;
        default: replace_number(data, at); break;
      }
    }
    return data;
  }

 private:
  // Numbers in text become extreme: that is where lengths and sizes overflow.
  void replace_number(Bytes& data, std::size_t at) {
    static const char* const kNumbers[] = {"-1", "0", "1e400", "18446744073709551616", "null",
                                           "4294967296", "\"x\"", "[]", "9223372036854775807"};
    while (at < data.size() && (data[at] < '0' || data[at] > '9')) ++at;
    std::size_t end = at;
    while (end < data.size() && data[end] >= '0' && data[end] <= '9') ++end;
    if (at == end) return;
    const char* number = kNumbers[below(std::size(kNumbers))];
    data.erase(data.begin() + static_cast<std::ptrdiff_t>(at),
               data.begin() + static_cast<std::ptrdiff_t>(end));
    data.insert(data.begin() + static_cast<std::ptrdiff_t>(at), number,
                number + std::strlen(number));
  }

  std::mt19937_64 random_;
};

// A manifest whose seal holds again, so that everything behind the seal is reached too.
Bytes resealed(const Bytes& data) {
  std::string text(data.begin(), data.end());
  const std::string key = "\"seal\": \"";
  const std::size_t at = text.find(key);
  if (at != std::string::npos && at + key.size() + 64 < text.size()) {
    text.replace(at + key.size(), 64, 64, '0');
    const std::string seal = atm::sha256(text.data(), text.size());
    text.replace(at + key.size(), 64, seal);
  }
  return Bytes(text.begin(), text.end());
}

struct Corpus {
  Bytes manifest, golden, jpeg, graph;
  atm::Facts facts;
};

Corpus corpus_of(const std::string& folder) {
  const atm::Run run(folder, true);
  Corpus corpus;
  corpus.facts = run.facts();
  corpus.manifest = atm::read_file(folder + "/manifest.json", ATM_NOT_A_RUN, 1 << 24);
  corpus.golden = run.read(run.facts().golden.file);
  corpus.graph = run.read("model.onnx");
  const auto tensors = atm::tensors_of(corpus.golden);
  const atm::Tensor& picture = tensors.at("picture");
  corpus.jpeg.assign(picture.data, picture.data + picture.count);
  return corpus;
}

void try_one(const Corpus& corpus, Mutator& random, std::size_t kind) {
  if (kind == 0) {
    const Bytes data = random.mutated(corpus.manifest);
    atm::manifest_from(random.below(4) != 0 ? resealed(data) : data, "fuzzed");
  } else if (kind == 1) {
    const Bytes data = random.mutated(corpus.golden);
    for (const auto& [name, tensor] : atm::tensors_of(data)) {
      if (tensor.floats) tensor.values();
    }
  } else if (kind == 2) {
    const Bytes data = random.mutated(corpus.jpeg);
    atm::crop(atm::decode_jpeg(data.data(), data.size(), 1 << 20), corpus.facts.input.preprocessing);
  } else {
    Bytes graph = corpus.graph;
    graph.resize(random.below(graph.size()));
    try {
      atm::locations(graph);
    } catch (const atm::Error&) {  // and what it refuses must not hurt ONNX Runtime either
    }
    atm::make_onnx_backend({graph, {}}, corpus.facts, {});
  }
}

}  // namespace

int main(int count, char** values) {
  if (count < 2) return 2;
  const double seconds = count > 2 ? std::atof(values[2]) : 60;
  Mutator random(count > 3 ? static_cast<unsigned>(std::atoi(values[3])) : 0);
  const char* const names[] = {"manifests", "golden files", "images", "models"};
  std::size_t read[4] = {}, refused[4] = {};
  try {
    const Corpus corpus = corpus_of(values[1]);
    const auto start = std::chrono::steady_clock::now();
    const auto spent = [&] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    while (spent() < seconds) {
      const std::size_t pick = random.below(100);
      const std::size_t kind = pick < 40 ? 0 : pick < 60 ? 1 : pick < 98 ? 2 : 3;
      try {
        try_one(corpus, random, kind);
        ++read[kind];
      } catch (const atm::Error&) {
        ++refused[kind];
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "atm_fuzz: an error of another kind came through: %s\n", error.what());
    return 1;
  }
  for (std::size_t i = 0; i < 4; ++i) {
    std::printf("%s: %zu refused, %zu read\n", names[i], refused[i], read[i]);
  }
  return 0;
}
