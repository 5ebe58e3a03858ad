// A run folder, trusted only when every byte is what the export wrote (as atm_export/runs).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "atm_runtime/atm_runtime.hpp"
#include "input.hpp"
#include "task.hpp"

namespace atm {

using Bytes = std::vector<std::uint8_t>;

struct Golden {
  std::string file;
  double grey_levels = 0;  // of the picture: what may differ; of outputs: `OutputFacts`
};

struct EngineFacts {
  std::string flavor, tensorrt;  // tensorrt or rtx; the version, four numbers
  std::vector<int> sms;
  bool any_version = false, any_gpu = false;  // built compatible
  bool fits_source = false;                   // built from a graph of this folder
  double cosine = 0;                          // least cosine of outputs with PyTorch's
};

// A graph of the folder in a precision below FP32, for ONNX Runtime's CPU provider.
struct LowPrecisionFacts {
  std::string precision;
  bool fits_source = false;  // made of a graph of this folder
  double cosine = 0;         // least cosine of outputs with PyTorch's
};

// What the manifest says, in the types that the runtime uses.
struct Facts {
  std::string policy;
  InputFacts input;
  TaskFacts task;
  std::vector<std::string> labels;  // empty: none known
  bool has_golden = false;
  Golden golden;
  std::map<std::string, EngineFacts> engines;
  std::map<std::string, LowPrecisionFacts> low_precision;  // by file
};

struct FileFacts {
  std::uint64_t bytes = 0;
  std::string sha256;
};

struct Manifest {
  Facts facts;
  std::map<std::string, FileFacts> files;
  bool proven = false;
};

// Parse and check a manifest's bytes: seal, format, and everything that Facts holds.
Manifest manifest_from(const Bytes& data, const std::string& path);

// Error `missing` for what is no regular file, cannot be read, or has more than `most` bytes.
Bytes read_file(const std::string& path, atm_status missing, std::uint64_t most);

class Run {
 public:
  Run(const std::string& folder, bool allow_unproven);
  const Facts& facts() const { return manifest_.facts; }
  const std::string& folder() const { return folder_; }
  // A listed file's bytes, hashed as read: what is checked is what is used.
  Bytes read(const std::string& name) const;

 private:
  std::string folder_;
  Manifest manifest_;
};

}  // namespace atm
