// Look first: a job's clips before its video is made. They can be made again with other settings, or used as they are.

import { Characters } from "./characters.js";
import { figure, make, showText } from "./dom.js";
import { finished, postJson, request } from "./http.js";
import { MaskHints } from "./mask_hints.js";
import { familyOf } from "./models.js";
import { People } from "./people.js";
import { Pictures, pictureOf } from "./pictures.js";
import { Playback } from "./playback.js";
import { Timeline } from "./timeline.js";
import { clock, duration } from "./times.js";

const MOST_MOMENTS = 6;
const PREVIEW = "These are the first two seconds. The rest is being made.";
const EARLIER = "These are the clips from before. You can still use them.";
// Milliseconds after which the page asks again whether the planner has made its estimate.
const PLANNING = 3000;
const RECOUNTED = "Numbers are counted again from the new start: check who is followed.";
// Settings of job.yaml that clients cannot send.
const OF_THE_SERVER = ["model", "mode", "keypoints", "mask_file", "light_models"];

export class Look {
  // Calls `onSubmitted` with the job after the server has accepted a new run for it.
  constructor(section, onSubmitted) {
    this.section = section;
    this.onSubmitted = onSubmitted;
    this.find = (selector) => section.querySelector(selector);
    const changed = () => this.showButtons();
    this.playback = new Playback(section, (seconds) => this.timeline.showPlayhead(this.offset + seconds));
    this.timeline = new Timeline(this.find(".part"), (moment) => {
      this.playback.seek((moment - this.offset) * this.info.fps);
      changed();
    });
    this.characters = new Characters(section, () => this.showCharacter());
    this.people = new People(this.find(".who"), () => {
      this.pictures.choose(this.people.chosen);
      this.showPictures();
    });
    this.pictures = new Pictures(this.find(".who"), () => this.showPictures());
    this.mask = new MaskHints(this.find(".who"), changed);
    this.find("[name=retarget]").addEventListener("change", changed);
    this.find(".again").addEventListener("click", () => this.makeAgain());
    this.find(".reset").addEventListener("click", () => this.loadChoices());
    this.find(".go").addEventListener("click", () => this.send(() => postJson(this.job.links.start, {})));
  }

  // Shows the clips of a job that waits for somebody to look, or whose clips are being made for that.
  async show(job) {
    const before = this.job;
    if (before?.job_id !== job.job_id) this.hide();
    this.job = job;
    if (!isWanted(job)) return this.hide();
    this.showButtons();
    if (this.asked && facts(before) === facts(job)) return;
    const asked = (this.asked = Symbol());
    let info;
    try {
      info = await request(job.links.clips);
    } catch (problem) {
      if (this.asked === asked) this.asked = null;
      if (this.job === job && finished(job)) this.showProblem(problem);
      return;
    }
    // Only the answer to the newest request counts.
    if (this.asked !== asked) return;
    if (job.status === "failed" && !job.review && !job.links.start && !info.blocked) return;
    this.showInfo(info);
  }

  hide() {
    this.playback.unload();
    this.info = this.asked = null;
    this.characters.reset();
    this.section.hidden = true;
    this.find(".views").replaceChildren();
  }

  showInfo(info) {
    const isNew = leading(info.links) !== leading(this.info?.links);
    this.info = info;
    this.section.hidden = false;
    this.showFindings();
    if (isNew) {
      this.showClips();
      this.loadChoices();
    }
    this.showButtons();
    if (info.estimate.pending) setTimeout(() => this.askAgain(info), PLANNING);
  }

  // Asks for the estimate of the clips that are shown.
  async askAgain(shown) {
    if (this.info !== shown) return;
    const info = await request(this.job.links.clips).catch(() => null);
    if (info && this.info === shown) this.showInfo(info);
  }

  get offset() {
    return this.info.look?.start ?? 0;
  }

  // Shows the clips of the chosen character.
  showClips() {
    const { look, mode, frames, fps, width, height } = this.info;
    const { chosen } = this.characters;
    const { links } = this.info.characters[chosen - 1] ?? this.info;
    const reference = this.job.links.reference && pictureOf(this.job, chosen);
    const figures = [
      links.overlay && look
        ? clip(links.overlay, "Motion", look.source_width / look.source_height)
        : links.driving ? clip(links.driving, "Driving video", "auto") : clip(links.pose, "Pose", width / height),
    ];
    if (links.face) figures.push(clip(links.face, "Face", 1));
    if (mode === "replace" && links.mask) figures.push(clip(links.mask, "Mask", width / height));
    if (reference) figures.push(figure("img", reference, "Character", { alt: "The picture of the character" }));
    this.find(".views").replaceChildren(...figures);
    this.playback.load([...this.find(".views").querySelectorAll("video")], { frames, fps });
  }

  // Shows the clips of another character at the same moment.
  showCharacter() {
    const { paused, frame } = this.playback;
    this.showClips();
    this.playback.seek(frame);
    if (!paused) this.playback.play();
    this.showMarks();
  }

  showFindings() {
    const { look, checks, blocked, fps, preview } = this.info;
    const { review, status, links } = this.job;
    const earlier = review && status !== "ready" && links.start ? EARLIER : "";
    showText(this.find(".which"), preview ? PREVIEW : earlier);
    const warnings = (look?.warnings ?? []).map(({ text, frames }) => {
      const moments = frames.slice(0, MOST_MOMENTS).map(([first, last]) => this.momentButton(first, last, fps));
      const more = frames.length > MOST_MOMENTS ? ` and ${frames.length - MOST_MOMENTS} more` : "";
      return make("li", {}, sentence(text), ...moments.flatMap((moment) => [" ", moment]), more);
    });
    const failed = checks.filter(({ passed }) => !passed);
    const words = failed.map(({ name, text, blocks }) => {
      const label = make("strong", { textContent: sentence(name.replaceAll("_", " ")) });
      return make("li", { className: blocks ? "blocks" : "" }, label, `: ${text}`);
    });
    this.find(".findings").replaceChildren(...words, ...warnings);
    const passed = checks.length - failed.length;
    const all = failed.length ? `${passed} of ${checks.length} checks passed.` : "All checks passed.";
    showText(this.find(".passed"), checks.length ? all : "");
    showText(this.find(".blocked"), blocked ?? "");
  }

  momentButton(first, last, fps) {
    const span = first === last ? clock(first / fps) : `${clock(first / fps)} to ${clock(last / fps)}`;
    const button = make("button", { type: "button", className: "moment", textContent: span });
    button.setAttribute("aria-label", `Show ${span}`);
    button.addEventListener("click", () => this.playback.seek(first));
    return button;
  }

  // Sets all controls to the settings of the clips that are shown.
  loadChoices() {
    const { look, links, mode, characters } = this.info;
    const settings = this.info.settings ?? {};
    this.find(".who").hidden = !links.people || !look || !this.applies("person");
    this.find(".who legend").textContent = mode === "replace" ? "Person and mask" : "Person";
    this.pictures.load(this.job, mode === "replace" ? look : null);
    this.people.load(links.people, look, this.pictures.first);
    const hints = [settings, ...characters.map((one) => one.settings)].map(({ mask_hints }) => mask_hints ?? []);
    const marks = new Map(this.pictures.characters.map(({ person, place }) => [person, hints[place] ?? []]));
    this.mask.load(marks, mode === "replace" ? look : null);
    this.find(".part").hidden = !look;
    if (look) {
      const { start, end } = settings;
      this.timeline.load({ pictures: links.timeline, seconds: look.source_seconds, start, end });
    }
    this.find(".retarget").hidden = !look || mode === "replace" || !this.applies("retarget");
    this.find("[name=retarget]").checked = settings.retarget !== "off";
    this.first = look && this.info.settings && this.choices();
    this.showProblem(null);
    this.showPictures();
  }

  showPictures() {
    this.pictures.draw();
    const named = this.pictures.characters.filter(({ place }) => place <= this.info.characters.length);
    this.characters.draw(named.map((one) => ({ place: one.place, name: nameOf(one) })));
    this.showMarks();
    this.showButtons();
  }

  // Shows the marks for the person of the chosen character.
  showMarks() {
    const one = this.pictures.characters.find(({ place }) => place === this.characters.chosen);
    const whose = this.info.characters.length ? `These marks are for ${nameOf(one).toLowerCase()}.` : "";
    this.mask.show(one.person, whose);
  }

  // The marks for all characters. Those of characters after the first end with the character's number.
  get maskHints() {
    return this.pictures.characters.flatMap(({ person }, index) => {
      const end = index ? `#${index + 1}` : "";
      return this.mask.of(person).map((hint) => hint + end);
    });
  }

  choices() {
    const { mode, settings } = this.info;
    const { chosen } = this.people;
    const { start, end } = this.timeline;
    const fitted = settings.retarget === "off" ? "robust" : settings.retarget;
    const all = {
      person: chosen == null ? settings.person : `index:${chosen}`,
      start,
      end,
      ...(mode === "replace"
        ? { mask_hints: this.maskHints }
        : { retarget: this.find("[name=retarget]").checked ? fitted : "off" }),
    };
    return Object.fromEntries(Object.entries(all).filter(([name]) => this.applies(name)));
  }

  // Whether a preprocessing setting applies to the model that the clips are for.
  applies(name) {
    return !familyOf(this.info.model)?.foreign_preprocess.includes(name);
  }

  changes() {
    if (!this.first) return {};
    const isChanged = ([name, value]) => JSON.stringify(value) !== JSON.stringify(this.first[name]);
    return Object.fromEntries(Object.entries(this.choices()).filter(isChanged));
  }

  // One of two buttons is offered: make the clips again after a change, or make the video of these clips.
  showButtons() {
    if (!this.info) return;
    const { estimate, blocked, preview } = this.info;
    const busy = !finished(this.job);
    const changed = Object.keys(this.changes()).length > 0 || this.pictures.changed;
    const canStart = Boolean(this.job.links.start) && !preview;
    for (const group of this.section.querySelectorAll("fieldset")) group.disabled = busy;
    for (const part of this.section.querySelectorAll(".handle, .layer")) part.setAttribute("aria-disabled", String(busy));
    this.find(".go").hidden = !canStart || changed;
    this.find(".go").disabled = Boolean(blocked);
    this.find(".go").textContent = ["Make the video", costs(estimate)].filter(Boolean).join(": ");
    showText(this.find(".basis"), canStart && !changed && !blocked ? `Estimate: ${estimate.basis}` : "");
    const isRecounted = this.first && this.timeline.start !== this.first.start && this.info.look.people.length > 1;
    showText(this.find(".recounted"), isRecounted ? RECOUNTED : "");
    this.find(".again").hidden = busy || !this.first || (canStart && !changed);
    this.find(".reset").hidden = busy || !changed;
    const undo = canStart ? ", or undo the changes to use these clips" : "";
    showText(this.find(".advice"), changed && !busy ? `Make the clips again to see what you changed${undo}.` : "");
  }

  makeAgain() {
    const given = { ...this.job.settings.preprocess };
    for (const name of OF_THE_SERVER) delete given[name];
    const preprocess = { ...given, ...this.ofEarlierClips(), ...this.changes() };
    // Each of several characters names its own person.
    if (this.job.characters.length) delete preprocess.person;
    const { self } = this.job.links;
    return this.send(async () => {
      if (!this.pictures.changed) return postJson(`${self}/clips`, { preprocess });
      const form = await this.pictures.form();
      form.set("preprocess", JSON.stringify(preprocess));
      const job = await request(`${self}/characters`, { method: "POST", body: form });
      if (this.info && this.job.job_id === job.job_id) {
        // The server's pictures are in the new order.
        this.pictures.load(job, this.info.look);
        this.pictures.draw();
      }
      return job;
    });
  }

  // The settings that the controls show, if they are not those of the newest run, because it failed.
  ofEarlierClips() {
    if (this.job.status === "ready") return {};
    const used = Object.keys(this.first).map((name) => [name, this.info.settings[name]]);
    const { mask_hints } = this.first;
    return { ...Object.fromEntries(used), ...(mask_hints ? { mask_hints } : {}) };
  }

  // Sends a request that starts a run.
  async send(post) {
    this.showProblem(null);
    const buttons = [this.find(".go"), this.find(".again")];
    for (const button of buttons) button.disabled = true;
    try {
      this.onSubmitted(await post());
    } catch (problem) {
      this.showProblem(problem);
    } finally {
      for (const button of buttons) button.disabled = false;
      this.showButtons();
    }
  }

  // Shows each line of an error at the control that caused it, the others at the buttons.
  showProblem(problem) {
    const lines = problem?.message.split("\n") ?? [];
    const places = { who: /^(preprocess\.)?(person|mask_hints|characters|reference)\b/, part: /^(preprocess\.)?(start|end)\b/ };
    for (const [place, pattern] of Object.entries(places)) {
      showText(this.find(`.${place} .error`), lines.filter((line) => pattern.test(line)).join("\n"));
    }
    const rest = lines.filter((line) => !Object.values(places).some((pattern) => pattern.test(line)));
    showText(this.find(".other"), rest.join("\n"));
  }
}

function clip(source, caption, proportions) {
  const element = figure("video", source, caption, { controls: false, muted: true, loop: true, preload: "auto" });
  element.firstChild.style.aspectRatio = proportions;
  return element;
}

function isWanted({ status, review, links }) {
  if (!links.clips || status === "succeeded") return false;
  return status === "ready" || status === "failed" || Boolean(links.start || review);
}

// The clip that shows the motion. Its address changes when other clips are there.
const leading = (links) => links?.pose ?? links?.driving;
const nameOf = ({ place, number, person }) => `Character ${place + 1}: ${number ? `person ${number}` : person}`;
const facts = ({ status, run_id, links }) => `${status} ${run_id} ${links.clips}`;
const sentence = (words) => words[0].toUpperCase() + words.slice(1);

// What the video will take, in words.
function costs({ seconds, most_seconds, price, most_price }) {
  const time = seconds == null ? "" : `about ${range(duration(seconds), duration(most_seconds))}`;
  const cost = price == null ? "" : range(money(price), money(most_price));
  return [time, cost].filter(Boolean).join("; ");
}

const range = (usual, most) => (usual === most ? usual : `${usual}, at most ${most}`);
const money = (price) => (price < 0.01 ? "under 0.01" : price.toFixed(2));
