// One job: follows it while it runs, shows its clips if somebody wants to look first, then plays its video.

import { figure, showBadge, showText } from "./dom.js";
import { finished, request } from "./http.js";
import { Look } from "./look.js";
import { modelInWords } from "./models.js";
import { duration } from "./times.js";

const EARLIER = "Video of earlier clips";

export class JobView {
  constructor(section, onChanged, onRemoved) {
    this.section = section;
    this.onChanged = onChanged;
    this.onRemoved = onRemoved;
    this.find = (selector) => section.querySelector(selector);
    this.look = new Look(this.find(".look"), (job) => this.submitted(job));
    this.find(".cancel").addEventListener("click", () => this.send("DELETE", this.job.links.self));
    this.find(".purge").addEventListener("click", () => this.purge());
    this.find(".together").addEventListener("click", () => this.playTogether());
    this.find(".log").addEventListener("toggle", () => this.showLog());
  }

  // Shows a job and follows it until it ends or waits for somebody to look.
  open(job) {
    this.job = null;
    this.look.hide();
    this.find(".log").open = false;
    this.find(".inputs").replaceChildren();
    this.show(job);
    this.section.hidden = false;
    this.follow(job);
  }

  // Follows the run that the look panel has started.
  submitted(job) {
    this.show(job);
    this.onChanged(job);
    this.follow(job);
    this.find("h2").focus({ preventScroll: true });
  }

  follow(job) {
    this.close();
    if (finished(job)) return;
    this.events = new EventSource(job.links.events);
    this.events.addEventListener("job", ({ data }) => {
      const newer = JSON.parse(data);
      this.show(newer);
      this.onChanged(newer);
      if (finished(newer)) this.close();
    });
    this.events.addEventListener("gone", () => {
      this.close();
      this.onRemoved(job.job_id);
    });
  }

  close() {
    this.events?.close();
    this.events = null;
  }

  hide() {
    this.close();
    this.look.hide();
    this.job = null;
    this.section.hidden = true;
  }

  show(job) {
    const statusChanged = !this.job || this.job.status !== job.status;
    this.job = job;
    this.find("h2").textContent = job.job_id;
    showBadge(this.find(".badge"), job);
    this.find(".words").textContent = statusText(job);
    const made = job.video?.model ? job.video : job;
    showText(this.find(".made-with"), made.model ? modelInWords(made) : "");
    const bar = this.find(".bar");
    bar.hidden = finished(job);
    const fraction = job.progress?.fraction;
    if (fraction == null) bar.removeAttribute("value");
    else bar.value = fraction;
    showText(this.find(".error"), job.error ?? "");
    this.find(".cancel").hidden = finished(job);
    this.find(".cancel").disabled = job.cancelling;
    this.find(".purge").hidden = !finished(job);
    const download = this.find(".download");
    download.hidden = !job.links.media;
    download.textContent = hasEarlierVideo(job) ? "Download the earlier video" : "Download";
    if (job.links.media) download.href = job.links.media;
    else download.removeAttribute("href");
    if (statusChanged) this.showMedia(job);
    this.look.show(job);
    if (statusChanged && this.find(".log").open) this.showLog();
  }

  showMedia(job) {
    const { reference, driving, media, poster } = job.links;
    const figures = [];
    if (reference) figures.push(figure("img", reference, "Character", { alt: "The picture of the character" }));
    if (driving) figures.push(figure("video", driving, "Driving video", { muted: true, loop: true }));
    const caption = hasEarlierVideo(job) ? EARLIER : "Result";
    if (media) figures.push(figure("video", versioned(media, job), caption, { poster: versioned(poster ?? "", job), loop: false }));
    this.find(".inputs").replaceChildren(...figures);
    this.find(".together").hidden = !(driving && media) || hasEarlierVideo(job);
  }

  // Plays the result and the driving video from the start, side by side.
  playTogether() {
    for (const video of this.section.querySelectorAll("video")) {
      video.currentTime = 0;
      video.play().catch(() => {});
    }
  }

  async send(method, path) {
    try {
      const job = await request(path, { method });
      if (job) {
        this.show(job);
        this.onChanged(job);
      }
    } catch (problem) {
      showText(this.find(".error"), problem.message);
    }
  }

  async purge() {
    const { job_id, links } = this.job;
    if (!confirm(`Delete ${job_id}, its video and its uploaded files?`)) return;
    try {
      await request(`${links.self}?purge=true`, { method: "DELETE" });
      this.onRemoved(job_id);
    } catch (problem) {
      showText(this.find(".error"), problem.message);
    }
  }

  async showLog() {
    if (!this.find(".log").open) return;
    const response = await fetch(this.job.links.log);
    this.find("pre").textContent = await response.text();
  }
}

// Whether the job's video was made before its newest run, which makes only clips.
const hasEarlierVideo = ({ links, status }) => Boolean(links.media) && status !== "succeeded";

// A later run puts another video at the same address.
const versioned = (path, job) => path && `${path}?run=${job.run_id}`;

function statusText(job) {
  const { progress, video } = job;
  if (job.status === "queued") return job.queue_position > 1 ? `number ${job.queue_position} in the queue` : "next to run";
  if (progress) return progress.words + (progress.eta_seconds == null ? "" : `, about ${duration(progress.eta_seconds)} left`);
  if (job.status === "ready") return "look at the clips, then make the video";
  if (video?.frames) return `${video.frames} frames of ${video.width}×${video.height}, made in ${duration(video.seconds)}`;
  return "";
}
