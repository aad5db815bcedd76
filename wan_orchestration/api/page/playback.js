// Plays the clips of a job together: one button, one scrubber, one clock for all.

import { clock } from "./times.js";

const LARGEST_DRIFT = 0.1;

export class Playback {
  // Calls `onTime` with the seconds that are shown.
  constructor(section, onTime) {
    this.button = section.querySelector(".play");
    this.scrubber = section.querySelector(".scrubber");
    this.clock = section.querySelector(".clock");
    this.onTime = onTime;
    this.videos = [];
    this.button.addEventListener("click", () => (this.paused ? this.play() : this.pause()));
    this.scrubber.addEventListener("input", () => this.seek(this.frame));
  }

  // The first video leads, the others follow it.
  load(videos, { frames, fps }) {
    this.pause();
    this.videos = videos;
    this.fps = fps;
    this.frames = frames;
    this.scrubber.max = frames - 1;
    const leader = this.leader;
    leader?.addEventListener("timeupdate", () => this.update(leader));
    leader?.addEventListener("loadeddata", () => this.update(leader), { once: true });
    for (const event of ["play", "pause"]) leader?.addEventListener(event, () => this.showState());
    this.showState();
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) this.play();
  }

  unload() {
    this.pause();
    this.videos = [];
  }

  get leader() {
    return this.videos[0];
  }

  get paused() {
    return this.leader?.paused ?? true;
  }

  // Number of the frame that is shown.
  get frame() {
    return Number(this.scrubber.value);
  }

  play() {
    for (const video of this.videos) video.play().catch(() => {});
    this.tick(this.leader);
  }

  pause() {
    for (const video of this.videos) video.pause();
  }

  // Shows a frame of all clips and stays there.
  seek(frame) {
    this.pause();
    const shown = Math.min(Math.max(Math.round(frame), 0), this.frames - 1);
    for (const video of this.videos) video.currentTime = (shown + 0.5) / this.fps;
    this.showTime(shown);
  }

  // Updates the scrubber at every picture of the screen while the videos play.
  tick(leader) {
    if (leader !== this.leader || !leader) return;
    this.update(leader);
    if (!leader.paused) requestAnimationFrame(() => this.tick(leader));
  }

  update(leader) {
    if (leader !== this.leader || leader.seeking) return;
    if (!leader.paused) {
      for (const video of this.videos.slice(1)) {
        if (Math.abs(video.currentTime - leader.currentTime) > LARGEST_DRIFT) video.currentTime = leader.currentTime;
      }
    }
    this.showTime(Math.min(Math.floor(leader.currentTime * this.fps), this.frames - 1));
  }

  showTime(frame) {
    const text = `${clock(frame / this.fps)} of ${clock(this.frames / this.fps)}`;
    this.scrubber.value = frame;
    this.scrubber.setAttribute("aria-valuetext", text);
    this.clock.textContent = text;
    this.onTime(frame / this.fps);
  }

  showState() {
    this.button.textContent = this.paused ? "Play" : "Pause";
  }
}
