#include "backend.hpp"

namespace atm {

std::unique_ptr<Backend> make_tensorrt_backend(const Run&, const Options& options) {
  throw Error(ATM_ARGUMENT, "engine '" + options.engine +
                                "': this library was built without TensorRT; configure with "
                                "-DATM_TENSORRT_ROOT=<SDK>");
}

}  // namespace atm
