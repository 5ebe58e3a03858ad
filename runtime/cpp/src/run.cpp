#include "run.hpp"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "sha256.hpp"

namespace atm {
namespace {

using nlohmann::json;

constexpr int kFormat = 2;
constexpr std::size_t kLargestSide = 1 << 14;
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

std::size_t side(const json& value) {
  const auto n = value.get<std::int64_t>();
  if (n < 1 || n > static_cast<std::int64_t>(kLargestSide)) throw Error(ATM_MANIFEST, "a size");
  return static_cast<std::size_t>(n);
}

Preprocessing preprocessing_of(const json& facts) {
  Preprocessing how;
  how.height = side(facts.at("size").at(0));
  how.width = side(facts.at("size").at(1));
  how.cover_height = side(facts.at("resize").at(0));
  how.cover_width = side(facts.at("resize").at(1));
  how.interpolation = facts.at("interpolation").get<std::string>();
  how.squash = facts.at("crop_mode").get<std::string>() == "squash";
  for (std::size_t i = 0; i < 3; ++i) {
    how.mean[i] = facts.at("mean").at(i).get<float>();
    how.deviation[i] = facts.at("std").at(i).get<float>();
    if (!std::isfinite(how.mean[i]) || !(how.deviation[i] > 0)) throw Error(ATM_MANIFEST, "std");
  }
  return how;
}

Golden golden_of(const json& facts) {
  const json& tolerance = facts.at("tolerance");
  return {facts.at("file").get<std::string>(), tolerance.at("logits").get<double>(),
          tolerance.at("picture_logits").get<double>(),
          tolerance.at("picture_grey_levels").get<double>()};
}

EngineFacts engine_of(const json& facts, const std::map<std::string, FileFacts>& files) {
  EngineFacts engine;
  engine.flavor = facts.at("flavor").get<std::string>();
  engine.tensorrt = facts.at("tensorrt").get<std::string>();
  engine.sms = facts.at("sms").get<std::vector<int>>();
  const json settings = facts.value("settings", json::object());
  engine.any_version = settings.value("version_compatible", false);
  engine.any_gpu = settings.value("hardware_compatible", false);
  const auto source = files.find(facts.at("source").at("file").get<std::string>());
  engine.fits_source = source != files.end() &&
                       source->second.sha256 == facts.at("source").at("sha256").get<std::string>();
  engine.cosine = facts.at("validation").at("tolerance").at("min_cosine_logits").get<double>();
  return engine;
}

Facts facts_of(const json& manifest, const std::map<std::string, FileFacts>& files) {
  Facts facts;
  const json& input = manifest.at("interface").at("input");
  facts.policy = manifest.at("method").at("merge").get<std::string>();
  facts.input = input.at("name").get<std::string>();
  facts.uint8 = input.at("dtype").get<std::string>() == "uint8";
  const json& logits = manifest.at("interface").at("outputs").at("logits");
  const auto classes = logits.at("shape").at(1).get<std::int64_t>();
  if (classes < 1 || classes > 10'000'000) throw Error(ATM_MANIFEST, "classes");
  facts.classes = static_cast<std::size_t>(classes);
  facts.preprocessing = preprocessing_of(manifest.at("preprocessing"));
  if (manifest.contains("labels") && manifest.at("labels").is_array()) {
    facts.labels = manifest.at("labels").get<std::vector<std::string>>();
    if (facts.labels.size() != facts.classes) throw Error(ATM_MANIFEST, "labels");
  }
  facts.has_golden = manifest.contains("golden") && manifest.at("golden").is_object();
  if (facts.has_golden) facts.golden = golden_of(manifest.at("golden"));
  if (manifest.contains("engines")) {
    for (const auto& [name, engine] : manifest.at("engines").items()) {
      facts.engines[name] = engine_of(engine, files);
    }
  }
  return facts;
}

std::map<std::string, FileFacts> files_of(const json& listed) {
  std::map<std::string, FileFacts> files;
  if (!listed.is_object()) throw Error(ATM_MANIFEST, "files");
  for (const auto& [name, facts] : listed.items()) {
    if (name.find_first_of("/\\") != std::string::npos) throw Error(ATM_MANIFEST, "a file name");
    files[name] = {facts.at("bytes").get<std::uint64_t>(), facts.at("sha256").get<std::string>()};
  }
  return files;
}

Manifest parsed(const std::string& text, const std::string& path) {
  const json manifest = json::parse(text);
  const auto version = manifest.at("format").get<std::int64_t>();
  if (version != kFormat) {
    throw Error(ATM_RUN_FORMAT, path + " has run format " + std::to_string(version) +
                                    ", this runtime reads " + std::to_string(kFormat) +
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
  const std::string text(data.begin(), data.end());
  const std::string damaged = path + " is damaged; export again";
  try {
    return parsed(text, path);
  } catch (const json::exception& error) {
    throw Error(ATM_MANIFEST, damaged + " (" + error.what() + ")");
  } catch (const std::logic_error& error) {  // a number that is none, or out of range
    throw Error(ATM_MANIFEST, damaged + " (" + error.what() + ")");
  } catch (const Error& error) {
    const std::string what = error.what();
    if (error.status() != ATM_MANIFEST || what.rfind(path, 0) == 0) throw;
    throw Error(ATM_MANIFEST, damaged + " (" + what + ")");
  }
}

Bytes read_file(const std::string& path, atm_status missing) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) {
    throw Error(missing, path + " is not there");
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  const std::streamoff size = file ? static_cast<std::streamoff>(file.tellg()) : -1;
  if (size < 0) throw Error(missing, path + " cannot be read");
  Bytes data(static_cast<std::size_t>(size));
  file.seekg(0);
  if (size > 0 && !file.read(reinterpret_cast<char*>(data.data()), size)) {
    throw Error(missing, path + " cannot be read");
  }
  return data;
}

Run::Run(const std::string& folder, bool allow_unproven) : folder_(folder) {
  const std::string path = folder + "/manifest.json";
  manifest_ = manifest_from(read_file(path, ATM_NOT_A_RUN), path);
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
  Bytes data = read_file(path, ATM_MISSING_FILE);
  if (data.size() != facts->second.bytes ||
      sha256(data.data(), data.size()) != facts->second.sha256) {
    throw Error(ATM_CHANGED_FILE,
                path + " was changed after the export (sha256 differs); export again");
  }
  return data;
}

}  // namespace atm
