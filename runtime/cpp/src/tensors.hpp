// Reading safetensors: 8 bytes of header length, a JSON header, then the arrays' bytes.
#pragma once

#include <map>

#include "run.hpp"

namespace atm {

// A view into the file's bytes, which must outlive it.
struct Tensor {
  std::vector<std::size_t> shape;
  const std::uint8_t* data = nullptr;
  std::size_t count = 0;
  bool floats = false;  // else bytes

  std::size_t rows() const { return shape.empty() ? 0 : shape[0]; }
  std::vector<float> values() const;  // Error unless floats
};

// Arrays of type U8 and F32 by name; others are left out. Error ATM_CHANGED_FILE if damaged.
std::map<std::string, Tensor> tensors_of(const Bytes& file);
std::map<std::string, Tensor> tensors_of(Bytes&& file) = delete;

}  // namespace atm
