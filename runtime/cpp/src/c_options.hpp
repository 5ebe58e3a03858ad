// A caller's atm_options, of whichever version it was built with.
#pragma once

#include "atm_runtime/atm_runtime.hpp"

namespace atm {

// Defaults for NULL and for fields beyond the caller's size. Error ATM_ARGUMENT for a size that ends
// inside a field, holds no option or is no struct's, and for options that are set but unknown here.
Options options_of(const atm_options* from);

}  // namespace atm
