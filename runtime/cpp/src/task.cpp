#include "task.hpp"

#include <algorithm>

#include "json.hpp"

namespace atm {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostLength = 10'000'000;
constexpr std::size_t kMostAxes = 4, kMostOutputs = 16;

// A manifest without a word about its task is a classifier's.
json classifier() {
  const std::string name = "logits";
  const json output = {{"name", name}, {"agreement", "top1"}};
  return {{"name", "classify"}, {"ranks", name}, {"outputs", json::array({output})}};
}

Agreement agreement_of(const std::string& name) {
  if (name == "difference") return Agreement::kDifference;
  if (name == "top1") return Agreement::kTop1;
  if (name == "cosine") return Agreement::kCosine;
  throw Error(ATM_MANIFEST, "the agreement '" + name + "' is not known to this runtime");
}

OutputFacts output_of(const json& stated, const json& interface) {
  OutputFacts output;
  output.name = stated.at("name").get<std::string>();
  output.agreement = agreement_of(stated.at("agreement").get<std::string>());
  const json& facts = interface.at(output.name);
  const json& shape = facts.at("shape");
  if (facts.at("dtype").get<std::string>() != "float32" || !shape.is_array() || shape.size() < 2 ||
      shape.size() > kMostAxes || shape.at(0) != "batch") {
    throw Error(ATM_MANIFEST, "interface.outputs." + output.name);
  }
  std::size_t numbers = 1;
  for (std::size_t i = 1; i < shape.size(); ++i) {
    output.shape.push_back(static_cast<std::size_t>(whole(shape.at(i), 1, kMostLength)));
    numbers *= output.shape.back();
    if (numbers > static_cast<std::size_t>(kMostLength)) {
      throw Error(ATM_MANIFEST, "interface.outputs." + output.name + " is too large");
    }
  }
  if (output.agreement == Agreement::kTop1 && output.shape.size() != 1) {
    throw Error(ATM_MANIFEST, "interface.outputs." + output.name);
  }
  return output;
}

}  // namespace

std::size_t OutputFacts::row() const {
  std::size_t numbers = 1;
  for (const std::size_t n : shape) numbers *= n;
  return numbers;
}

std::size_t TaskFacts::classes() const {
  for (const OutputFacts& output : outputs) {
    if (!ranks.empty() && output.name == ranks) return output.row();
  }
  return 0;
}

TaskFacts task_of(const json& manifest) {
  const json stated = manifest.contains("task") ? manifest.at("task") : classifier();
  TaskFacts task;
  task.name = stated.at("name").get<std::string>();
  if (!stated.at("ranks").is_null()) task.ranks = stated.at("ranks").get<std::string>();
  const json& outputs = stated.at("outputs");
  if (!outputs.is_array() || outputs.empty() || outputs.size() > kMostOutputs) {
    throw Error(ATM_MANIFEST, "task.outputs");
  }
  for (const json& each : outputs) {
    task.outputs.push_back(output_of(each, manifest.at("interface").at("outputs")));
    const OutputFacts& last = task.outputs.back();
    for (std::size_t i = 0; i + 1 < task.outputs.size(); ++i) {
      if (task.outputs[i].name == last.name) throw Error(ATM_MANIFEST, "task.outputs");
    }
  }
  const auto ranked = [&](const OutputFacts& output) {
    return output.name == task.ranks && output.agreement == Agreement::kTop1;
  };
  const bool none = stated.at("ranks").is_null();
  if (!none && std::none_of(task.outputs.begin(), task.outputs.end(), ranked)) {
    throw Error(ATM_MANIFEST, "task.ranks");
  }
  return task;
}

}  // namespace atm
