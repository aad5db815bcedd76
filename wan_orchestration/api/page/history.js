// The list of jobs, the newest first.

import { JOBS, ask } from "./server.js";
import { badge } from "./job.js";

const LOOK_MILLISECONDS = 5000;

export class History {
  constructor(section) {
    this.list = section.querySelector("#jobs");
    this.none = section.querySelector("#none");
    this.older = section.querySelector("#older");
    this.filter = section.querySelector("#filter");
    this.entry = document.querySelector("#entry");
    this.next = null;
    this.looks = null;
    this.filter.addEventListener("change", () => this.load());
    this.older.addEventListener("click", () => this.load(this.next));
    setInterval(() => this.refresh(), LOOK_MILLISECONDS);
  }

  first() {
    return `${JOBS}?limit=20${this.filter.value && `&status=${this.filter.value}`}`;
  }

  async load(page) {
    const { jobs, next } = await ask(page ?? this.first());
    const looks = JSON.stringify(jobs);
    if (!page && looks === this.looks) return;
    if (!page) this.list.replaceChildren();
    this.looks = page ? null : looks;
    jobs.forEach((job) => this.list.append(this.row(job)));
    this.next = next;
    this.older.hidden = !next;
    this.none.hidden = this.list.childElementCount > 0;
    this.mark();
  }

  // The first page anew, unless someone has asked for more than that, or does not look.
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
    this.looks = null;
    const old = this.list.querySelector(`[data-job="${CSS.escape(job.job_id)}"]`);
    if (old) old.replaceWith(this.row(job));
    else this.list.prepend(this.row(job));
    this.none.hidden = true;
    this.mark();
  }

  remove(jobId) {
    this.looks = null;
    this.list.querySelector(`[data-job="${CSS.escape(jobId)}"]`)?.remove();
    this.none.hidden = this.list.childElementCount > 0;
  }

  mark() {
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
    badge(row.querySelector(".badge"), job);
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
