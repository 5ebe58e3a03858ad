// What a run answers, as its manifest states it (as atm_export/tasks/stated.py).
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace atm {

// When two answers to an image are the same: by their largest difference; by that and their first
// choice; by the widest angle of two vectors along the last axis, as 1 - cosine.
enum class Agreement { kDifference, kTop1, kCosine };

// One output: float32 [batch, shape...].
struct OutputFacts {
  std::string name;
  std::vector<std::size_t> shape;  // of one image's answer
  Agreement agreement = Agreement::kDifference;
  double allowed = 0, picture = 0;  // of golden vectors: what may differ

  std::size_t row() const;                             // numbers an image
  std::size_t length() const { return shape.back(); }  // of the last axis
};

struct TaskFacts {
  std::string name;
  std::string ranks;                 // the output whose rows rank classes; empty: none does
  std::vector<OutputFacts> outputs;  // the main one first

  std::size_t classes() const;  // how many are ranked; 0: none
};

// Error ATM_MANIFEST for what does not fit together; of JSON, any std::exception.
TaskFacts task_of(const nlohmann::json& manifest);

}  // namespace atm
