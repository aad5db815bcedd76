// One job: followed live, then played.

import { ask, finished } from "./server.js";
import { say } from "./order.js";

export class JobView {
  constructor(section, changed, gone) {
    this.section = section;
    this.changed = changed;
    this.gone = gone;
    this.part = (selector) => section.querySelector(selector);
    this.part(".cancel").addEventListener("click", () => this.act("DELETE", this.job.links.self));
    this.part(".purge").addEventListener("click", () => this.purge());
    this.part(".together").addEventListener("click", () => this.playTogether());
    this.part(".log").addEventListener("toggle", () => this.showLog());
  }

  // Shows a job and follows it to its end.
  open(job) {
    this.close();
    this.job = null;
    this.part(".log").open = false;
    this.part(".stage").replaceChildren();
    this.show(job);
    this.section.hidden = false;
    if (finished(job)) return;
    this.events = new EventSource(job.links.events);
    this.events.addEventListener("job", ({ data }) => {
      const newer = JSON.parse(data);
      this.show(newer);
      this.changed(newer);
      if (finished(newer)) this.close();
    });
    this.events.addEventListener("gone", () => {
      this.close();
      this.gone(job.job_id);
    });
  }

  close() {
    this.events?.close();
    this.events = null;
  }

  hide() {
    this.close();
    this.job = null;
    this.section.hidden = true;
  }

  show(job) {
    const news = !this.job || this.job.status !== job.status;
    this.job = job;
    this.part("h2").textContent = job.job_id;
    badge(this.part(".badge"), job);
    this.part(".words").textContent = words(job);
    const bar = this.part(".bar");
    bar.hidden = finished(job);
    const fraction = job.progress?.fraction;
    if (fraction == null) bar.removeAttribute("value");
    else bar.value = fraction;
    say(this.part(".error"), job.error ?? "");
    this.part(".cancel").hidden = finished(job);
    this.part(".cancel").disabled = job.cancelling;
    this.part(".purge").hidden = !finished(job);
    const download = this.part(".download");
    download.hidden = !job.links.media;
    if (job.links.media) download.href = job.links.media;
    else download.removeAttribute("href");
    if (news) this.stage(job);
    if (news && this.part(".log").open) this.showLog();
  }

  stage(job) {
    const { reference, driving, media, poster } = job.links;
    const figures = [];
    if (reference) figures.push(figure("img", reference, "Character", { alt: "The picture of the character" }));
    if (driving) figures.push(figure("video", driving, "Driving video", { muted: true, loop: true }));
    if (media) figures.push(figure("video", versioned(media, job), "Result", { poster: versioned(poster ?? "", job), loop: false }));
    this.part(".stage").replaceChildren(...figures);
    this.part(".together").hidden = !(driving && media);
  }

  // Result and driving video from the start, side by side.
  playTogether() {
    for (const video of this.section.querySelectorAll("video")) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  }

  async act(method, path) {
    try {
      const job = await ask(path, { method });
      if (job) {
        this.show(job);
        this.changed(job);
      }
    } catch (problem) {
      say(this.part(".error"), problem.message);
    }
  }

  async purge() {
    const { job_id, links } = this.job;
    if (!confirm(`Delete ${job_id}, its video and what was uploaded for it?`)) return;
    try {
      await ask(`${links.self}?purge=true`, { method: "DELETE" });
      this.gone(job_id);
    } catch (problem) {
      say(this.part(".error"), problem.message);
    }
  }

  async showLog() {
    if (!this.part(".log").open) return;
    const response = await fetch(this.job.links.log);
    this.part("pre").textContent = await response.text();
  }
}

export function badge(element, job) {
  element.className = `badge ${job.status}`;
  element.textContent = job.cancelling ? "stopping" : job.status;
}

function figure(kind, source, caption, properties) {
  const element = document.createElement("figure");
  element.className = caption.toLowerCase().replaceAll(" ", "-");
  const media = document.createElement(kind);
  Object.assign(media, kind === "video" ? { controls: true, playsInline: true, preload: "metadata" } : {}, properties);
  media.src = source;
  media.setAttribute("aria-label", caption);
  const text = document.createElement("figcaption");
  text.textContent = caption;
  media.addEventListener("error", () => {
    text.textContent = `${caption}: this browser cannot show it`;
    media.remove();
  });
  element.append(media, text);
  return element;
}

// A job that was run again has another video under the same address.
const versioned = (path, job) => path && `${path}?run=${job.run_id}`;

function words(job) {
  const { progress, video } = job;
  if (job.status === "queued") return job.queue_position > 1 ? `number ${job.queue_position} in the queue` : "next to run";
  if (progress) return progress.words + (progress.eta_seconds == null ? "" : `, about ${duration(progress.eta_seconds)} left`);
  if (video?.frames) return `${video.frames} frames of ${video.width}×${video.height}, made in ${duration(video.seconds)}`;
  return "";
}

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
