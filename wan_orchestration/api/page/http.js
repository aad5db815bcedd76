// Sends requests to the server. Answers are JSON; an error's message names the wrong fields.

export const JOBS = "/animate/jobs";
export const finished = (job) => !["queued", "running"].includes(job.status);

export class SignedOut extends Error {}

export async function request(path, options = {}) {
  const response = await checked(path, options);
  return response.status === 204 ? null : response.json();
}

// The content of a file, as a Blob.
export async function download(path) {
  const response = await checked(path);
  return response.blob();
}

async function checked(path, options = {}) {
  const response = await fetch(path, options);
  if (response.ok) return response;
  throw toError(response.status, await response.text());
}

export function postJson(path, body) {
  const headers = { "Content-Type": "application/json" };
  return request(path, { method: "POST", headers, body: JSON.stringify(body) });
}

export function toError(status, body) {
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

// Uploads a form and calls `onProgress` with the fraction that was sent, which fetch() cannot report.
export function upload(form, onProgress) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest();
    xhr.open("POST", JOBS);
    xhr.setRequestHeader("Idempotency-Key", crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`);
    xhr.upload.addEventListener("progress", ({ loaded, total }) => onProgress(loaded / total));
    xhr.addEventListener("error", () => reject(new Error("The server cannot be reached.")));
    xhr.addEventListener("load", () => {
      if (xhr.status === 202) resolve(JSON.parse(xhr.responseText));
      else reject(toError(xhr.status, xhr.responseText));
    });
    xhr.send(form);
  });
}
