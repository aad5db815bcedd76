// The server's answers: JSON, or an Error whose message names the fields at fault.

export const JOBS = "/animate/jobs";
export const finished = (job) => !["queued", "running"].includes(job.status);

export class SignedOut extends Error {}

export async function ask(path, options = {}) {
  const response = await fetch(path, options);
  if (response.ok) return response.status === 204 ? null : response.json();
  throw failure(response.status, await response.text());
}

export function failure(status, body) {
  let problem;
  try {
    problem = JSON.parse(body);
  } catch {
    problem = { detail: `The server answered with status ${status}.` };
  }
  const fields = (problem.errors ?? []).map(({ field, detail }) => `${field}: ${detail}`);
  const message = fields.join("\n") || problem.detail;
  return status === 401 ? new SignedOut(message) : new Error(message);
}

// Sends a form; `sent` hears the part that has gone out. fetch() cannot tell that.
export function send(form, sent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", JOBS);
    request.setRequestHeader("Idempotency-Key", crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`);
    request.upload.addEventListener("progress", ({ loaded, total }) => sent(loaded / total));
    request.addEventListener("error", () => reject(new Error("The server cannot be reached.")));
    request.addEventListener("load", () => {
      if (request.status === 202) resolve(JSON.parse(request.responseText));
      else reject(failure(request.status, request.responseText));
    });
    request.send(form);
  });
}
