// A graph as files have it, and the files with its weights beside it (as atm_export/runs/graphs.py).
#pragma once

#include <map>
#include <set>
#include <string>

#include "run.hpp"

namespace atm {

struct SavedGraph {
  Bytes graph;
  std::map<std::string, Bytes> beside;  // by the location that the graph names
};

// Names of the files that tensors of a serialized graph lie in. Error ATM_CHANGED_FILE for bytes
// that are none.
std::set<std::string> locations(const Bytes& graph);

// A graph of a run with all its files, each hashed as it was read. Error ATM_MISSING_FILE where it
// names a file that the run does not list.
SavedGraph read_graph(const Run& run, const std::string& name);

}  // namespace atm
