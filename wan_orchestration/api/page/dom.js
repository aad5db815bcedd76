// Shows texts and states in elements of the page.

// An element without a text is hidden.
export function showText(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

export function showBadge(element, job) {
  element.className = `badge ${job.status}`;
  element.textContent = job.cancelling ? "stopping" : job.status;
}
