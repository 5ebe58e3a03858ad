// Every failure of this runtime, with what, where and how to fix it in one line.

export class AtmError extends Error {
  constructor(message) {
    super(String(message).replace(/\s+/g, " "));
    this.name = "AtmError";
  }
}

// A condition that a manifest's or a file's bytes must meet.
export function must(holds, message) {
  if (!holds) throw new AtmError(message);
}
