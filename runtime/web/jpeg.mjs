// A JPEG file without what its camera says of its orientation, which browsers obey whatever they are
// asked, and Python ignores.

const START = [0xff, 0xd8];
const START_OF_SCAN = 0xda;
const APP1 = 0xe1;
const EXIF = [0x45, 0x78, 0x69, 0x66, 0]; // "Exif\0"

// The parts of a file that remain; of what is no JPEG file, all of it.
export function withoutExif(bytes) {
  if (!START.every((byte, i) => bytes[i] === byte)) return [bytes];
  const parts = [bytes.subarray(0, START.length)];
  let at = START.length;
  while (bytes[at] === 0xff && bytes[at + 1] !== START_OF_SCAN) {
    const end = at + 2 + ((bytes[at + 2] << 8) | bytes[at + 3]);
    if (!(end > at + 3 && end <= bytes.length)) break; // damaged, which the decoder will say
    const exif = bytes[at + 1] === APP1 && EXIF.every((byte, i) => bytes[at + 4 + i] === byte);
    if (!exif) parts.push(bytes.subarray(at, end));
    at = end;
  }
  return [...parts, bytes.subarray(at)];
}
