// Makes elements of the page, and shows texts and states in them.

// An element without a text is hidden.
export function showText(element, text) {
  element.textContent = text;
  element.hidden = !text;
}

export function showBadge(element, job) {
  element.className = `badge ${job.status}`;
  element.textContent = job.cancelling ? "stopping" : job.status;
}

export function make(kind, properties, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

// A video or a picture with a caption.
export function figure(kind, source, caption, properties) {
  const video = kind === "video" ? { controls: true, playsInline: true, preload: "metadata" } : {};
  const media = make(kind, { ...video, ...properties });
  media.src = source;
  media.setAttribute("aria-label", caption);
  const text = make("figcaption", { textContent: caption });
  media.addEventListener("error", () => {
    text.textContent = `${caption}: this browser cannot show it`;
    media.remove();
  });
  return make("figure", { className: caption.toLowerCase().replaceAll(" ", "-") }, media, text);
}
