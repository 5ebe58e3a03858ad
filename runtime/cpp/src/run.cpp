#include "run.hpp"

#include <filesystem>
#include <fstream>

#include "json.hpp"
#include "sha256.hpp"

namespace atm {
namespace {

using nlohmann::json;

constexpr int kOldestFormat = 2, kFormat = 3;
constexpr std::uint64_t kMostManifest = 16 << 20;
const std::string kSealKey = "\"seal\": \"";

bool hex_digit(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

// Where the seal's 64 digits stand; npos if there is none.
std::size_t find_seal(const std::string& text) {
  for (std::size_t at = text.find(kSealKey); at != std::string::npos;
       at = text.find(kSealKey, at + 1)) {
    const std::size_t begin = at + kSealKey.size();
    if (begin + 64 >= text.size() || text[begin + 64] != '"') continue;
    std::size_t n = 0;
    while (n < 64 && hex_digit(text[begin + n])) ++n;
    if (n == 64) return begin;
  }
  return std::string::npos;
}

bool seal_holds(std::string text) {
  const std::size_t at = find_seal(text);
  if (at == std::string::npos) return false;
  const std::string seal = text.substr(at, 64);
  text.replace(at, 64, 64, '0');
  return sha256(text.data(), text.size()) == seal;
}

Golden golden_of(const json& facts) {
  const json& tolerance = facts.at("tolerance");
  return {facts.at("file").get<std::string>(), tolerance.at("picture_grey_levels").get<double>()};
}

// Whether what a manifest lists was made of a graph that the folder holds.
bool fits_source(const json& facts, const std::map<std::string, FileFacts>& files) {
  const json& stated = facts.at("source");
  const auto source = files.find(stated.at("file").get<std::string>());
  const auto digest = stated.at("sha256").get<std::string>();
  return source != files.end() && source->second.sha256 == digest;
}

double least_cosine(const json& facts, const std::string& main) {
  return facts.at("validation").at("tolerance").at("min_cosine_" + main).get<double>();
}

EngineFacts engine_of(const json& facts, const std::map<std::string, FileFacts>& files,
                      const std::string& main) {
  EngineFacts engine;
  engine.flavor = facts.at("flavor").get<std::string>();
  engine.tensorrt = facts.at("tensorrt").get<std::string>();
  engine.sms = facts.at("sms").get<std::vector<int>>();
  const json settings = facts.value("settings", json::object());
  engine.any_version = settings.value("version_compatible", false);
  engine.any_gpu = settings.value("hardware_compatible", false);
  engine.fits_source = fits_source(facts, files);
  engine.cosine = least_cosine(facts, main);
  return engine;
}

// Graphs in low precision; those of other backends are not this runtime's.
void add_low_precision(const json& listed, const std::map<std::string, FileFacts>& files,
                       Facts& facts) {
  const std::string& main = facts.task.outputs[0].name;
  for (const auto& [name, each] : listed.items()) {
    if (each.at("backend").get<std::string>() != "onnxruntime") continue;
    facts.low_precision[name] = {each.at("precision").get<std::string>(), fits_source(each, files),
                                 least_cosine(each, main)};
  }
}

Facts facts_of(const json& manifest, const std::map<std::string, FileFacts>& files) {
  Facts facts;
  facts.policy = word(manifest.at("method").at("merge"), {"adaptive", "per-image", "frozen"});
  whole(manifest.at("opset"), 1, 1000);
  facts.task = task_of(manifest);
  facts.input = input_of(manifest);
  if (!manifest.at("labels").is_null()) {
    facts.labels = manifest.at("labels").get<std::vector<std::string>>();
    if (facts.labels.size() != facts.task.classes()) throw Error(ATM_MANIFEST, "labels");
  }
  facts.has_golden = !manifest.at("golden").is_null();
  if (facts.has_golden) {
    facts.golden = golden_of(manifest.at("golden"));
    const json& tolerance = manifest.at("golden").at("tolerance");
    for (OutputFacts& output : facts.task.outputs) {
      output.allowed = tolerance.at(output.name).get<double>();
      output.picture = tolerance.at("picture_" + output.name).get<double>();
    }
  }
  if (manifest.contains("engines")) {
    for (const auto& [name, engine] : manifest.at("engines").items()) {
      facts.engines[name] = engine_of(engine, files, facts.task.outputs[0].name);
    }
  }
  if (manifest.contains("low_precision")) {
    add_low_precision(manifest.at("low_precision"), files, facts);
  }
  return facts;
}

std::map<std::string, FileFacts> files_of(const json& listed) {
  std::map<std::string, FileFacts> files;
  if (!listed.is_object()) throw Error(ATM_MANIFEST, "files");
  for (const auto& [name, facts] : listed.items()) {
    const bool strange = name.empty() || name == "." || name == "..";
    if (strange || name.find_first_of(std::string("/\\:\0", 4)) != std::string::npos) {
      throw Error(ATM_MANIFEST, "a file name");
    }
    files[name] = {facts.at("bytes").get<std::uint64_t>(), facts.at("sha256").get<std::string>()};
  }
  return files;
}

Manifest parsed(const Bytes& data, const std::string& path) {
  const json manifest = json_of(data.data(), data.size());
  const std::string text(data.begin(), data.end());
  const std::int64_t version = whole(manifest.at("format"), 0, INT32_MAX);
  if (version < kOldestFormat || version > kFormat) {
    throw Error(ATM_RUN_FORMAT, path + " has run format " + std::to_string(version) +
                                    ", this runtime reads " + std::to_string(kOldestFormat) +
                                    " and " + std::to_string(kFormat) +
                                    "; export again with --force");
  }
  if (!seal_holds(text)) {
    throw Error(ATM_MANIFEST, path + " was changed after the export; export again");
  }
  Manifest found;
  found.files = files_of(manifest.at("files"));
  found.proven = manifest.value("status", std::string()) == "proven";
  found.facts = facts_of(manifest, found.files);
  if (found.files.count("model.onnx") == 0) throw Error(ATM_MANIFEST, "no model.onnx");
  return found;
}

}  // namespace

Manifest manifest_from(const Bytes& data, const std::string& path) {
  const std::string damaged = path + " is damaged; export again";
  try {
    return parsed(data, path);
  } catch (const Error& error) {
    const std::string what = error.what();
    if (error.status() != ATM_MANIFEST || what.rfind(path, 0) == 0) throw;
    throw Error(ATM_MANIFEST, damaged + " (" + what + ")");
  } catch (const std::exception& error) {  // no JSON, or facts of another kind
    throw Error(ATM_MANIFEST, damaged + " (" + error.what() + ")");
  }
}

Bytes read_file(const std::string& path, atm_status missing, std::uint64_t most) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) {
    throw Error(missing, path + " is not there");
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0) throw Error(missing, path + " cannot be read");
  if (static_cast<std::uint64_t>(size) > most) throw Error(missing, path + " is too large");
  Bytes data(static_cast<std::size_t>(size));
  file.seekg(0);
  if (size > 0 && !file.read(reinterpret_cast<char*>(data.data()), size)) {
    throw Error(missing, path + " cannot be read");
  }
  return data;
}

Run::Run(const std::string& folder, bool allow_unproven) : folder_(folder) {
  if (folder.empty()) throw Error(ATM_NOT_A_RUN, "no folder was named");
  const std::string path = folder + "/manifest.json";
  manifest_ = manifest_from(read_file(path, ATM_NOT_A_RUN, kMostManifest), path);
  for (const auto& [name, facts] : manifest_.files) read(name);
  if (!manifest_.proven && !allow_unproven) {
    throw Error(ATM_UNPROVEN, folder + ": its parity with PyTorch was not proven; export again");
  }
}

Bytes Run::read(const std::string& name) const {
  const auto facts = manifest_.files.find(name);
  if (facts == manifest_.files.end()) {
    throw Error(ATM_MISSING_FILE, folder_ + " has no file '" + name + "'");
  }
  const std::string path = folder_ + "/" + name;
  std::error_code failed;
  const std::uintmax_t size = std::filesystem::file_size(path, failed);
  const bool longer = !failed && size > facts->second.bytes;  // and may be longer than memory
  Bytes data = longer ? Bytes() : read_file(path, ATM_MISSING_FILE, facts->second.bytes);
  if (longer || data.size() != facts->second.bytes ||
      sha256(data.data(), data.size()) != facts->second.sha256) {
    throw Error(ATM_CHANGED_FILE,
                path + " was changed after the export (sha256 differs); export again");
  }
  return data;
}

}  // namespace atm
