// The list of jobs, the newest first.

import { showBadge } from "./dom.js";
import { JOBS, request } from "./http.js";

const REFRESH_MILLISECONDS = 5000;

export class History {
  constructor(section) {
    this.list = section.querySelector("#jobs");
    this.none = section.querySelector("#none");
    this.older = section.querySelector("#older");
    this.filter = section.querySelector("#filter");
    this.entry = document.querySelector("#entry");
    this.next = null;
    this.shown = null;
    this.filter.addEventListener("change", () => this.load());
    this.older.addEventListener("click", () => this.load(this.next));
    setInterval(() => this.refresh(), REFRESH_MILLISECONDS);
  }

  firstPage() {
    return `${JOBS}?limit=20${this.filter.value && `&status=${this.filter.value}`}`;
  }

  async load(page) {
    const { jobs, next } = await request(page ?? this.firstPage());
    const shown = JSON.stringify(jobs);
    if (!page && shown === this.shown) return;
    if (!page) this.list.replaceChildren();
    this.shown = page ? null : shown;
    jobs.forEach((job) => this.list.append(this.row(job)));
    this.next = next;
    this.older.hidden = !next;
    this.none.hidden = this.list.childElementCount > 0;
    this.markOpenJob();
  }

  // Loads the first page again, unless the page is in the background or older jobs are shown.
  async refresh() {
    if (document.hidden || this.list.childElementCount > 20) return;
    const focused = document.activeElement?.closest("#jobs a")?.hash;
    try {
      await this.load();
    } catch {
      return;
    }
    if (focused) this.list.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus();
  }

  update(job) {
    this.shown = null;
    const old = this.list.querySelector(`[data-job="${CSS.escape(job.job_id)}"]`);
    if (old) old.replaceWith(this.row(job));
    else this.list.prepend(this.row(job));
    this.none.hidden = true;
    this.markOpenJob();
  }

  remove(jobId) {
    this.shown = null;
    this.list.querySelector(`[data-job="${CSS.escape(jobId)}"]`)?.remove();
    this.none.hidden = this.list.childElementCount > 0;
  }

  markOpenJob() {
    for (const link of this.list.querySelectorAll("a")) {
      if (link.hash === location.hash) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }

  row(job) {
    const row = this.entry.content.firstElementChild.cloneNode(true);
    row.dataset.job = job.job_id;
    row.querySelector("a").href = `#${job.job_id}`;
    row.querySelector(".name").textContent = job.job_id;
    showBadge(row.querySelector(".badge"), job);
    const time = row.querySelector("time");
    time.dateTime = job.created_at;
    time.textContent = new Date(job.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const picture = job.links.poster ? `${job.links.poster}?run=${job.run_id}` : job.links.reference;
    if (picture) {
      const image = document.createElement("img");
      Object.assign(image, { src: picture, alt: "", loading: "lazy" });
      row.querySelector(".thumb").append(image);
    }
    return row;
  }
}
