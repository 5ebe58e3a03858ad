#!/usr/bin/env bash
# Headers and ONNX Runtime's library for runtime/cpp, in FOLDER, with nothing installed.
# Usage: tools/cpp_packages.sh FOLDER
#
# ONNX Runtime's headers and nlohmann-json come from Debian packages of a newer suite than most
# systems run, extracted only; the library is the one inside the onnxruntime wheel of `python`.
# libjpeg-turbo's headers are the system's, or extracted from its own package likewise.
# Leaves FOLDER/include, FOLDER/lib. Exits with 3 and a reason where something cannot be had.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
suite=${ATM_DEBIAN_SUITE:-trixie}

cannot() {
  echo "$1" >&2
  exit 3
}

library=$(python - <<'PY' 2>/dev/null || true
from importlib.util import find_spec
from pathlib import Path
found = sorted(Path(find_spec("onnxruntime").origin).parent.glob("capi/libonnxruntime.so.*"))
print(found[0] if found else "")
PY
)
[ -n "$library" ] || cannot "the onnxruntime package of this Python holds no libonnxruntime.so"
mkdir -p "$folder/lib"
ln -sf "$library" "$folder/lib/libonnxruntime.so.1"
ln -sf libonnxruntime.so.1 "$folder/lib/libonnxruntime.so"
[ -f "$folder/include/onnxruntime_cxx_api.h" ] && exit 0

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
  cannot "no ONNX Runtime headers: give ONNXRUNTIME_ROOT (there is no apt-get to fetch them with)"
mirror=$(grep -hoE '(https?|file|mirror\+file)://?[^ ]+' /etc/apt/sources.list \
  /etc/apt/sources.list.d/*.sources /etc/apt/sources.list.d/*.list 2>/dev/null |
  grep -m1 'debian/*$' || true)
[ -n "$mirror" ] || cannot "no Debian mirror in the package sources: give ONNXRUNTIME_ROOT"
apt="$folder/apt"
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/debs"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" \
  >"$apt/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=-
  -o Dir::State::lists="$apt/lists" -o Dir::Cache="$apt/cache" -o APT::Sandbox::User=root)
apt-get "${options[@]}" update >/dev/null 2>&1 || cannot "Debian's $suite packages are not reachable"
packages=(libonnxruntime-dev nlohmann-json3-dev)
echo '#include <cstdio>
#include <jpeglib.h>' | g++ -E -x c++ - >/dev/null 2>&1 || packages+=(libjpeg62-turbo-dev libjpeg62-turbo)
(cd "$apt/debs" && apt-get "${options[@]}" download "${packages[@]}" >/dev/null 2>&1) ||
  cannot "Debian's ${packages[*]} cannot be downloaded"
for deb in "$apt"/debs/*.deb; do dpkg-deb -x "$deb" "$folder/unpacked"; done
cp -r "$folder/unpacked/usr/include" "$folder/"
cp -r "$folder/include/onnxruntime/." "$folder/include/"
find "$folder/unpacked/usr/lib" -name 'libjpeg.so*' -exec cp -P {} "$folder/lib/" \; 2>/dev/null || true
rm -rf "$folder/unpacked" "$apt"
